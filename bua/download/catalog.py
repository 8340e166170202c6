"""The data sets that bua can fetch: addresses, sizes, checksums, and where their files belong, as plain data.

Sizes and checksums are those that others published or recorded; None means that none is known, and then only what the
server says is checked. The sources are TensorFlow Datasets (sizes and SHA-256 of COCO's archives and of Karpathy's),
ParlAI (SHA-256 of VQA v2), the git repositories themselves (ids of their files), and records of several projects that
agree (SHA-256 of GloVe and of image_data.json.zip, sizes of the other files). Nothing of it was compared with the
servers from here. Sizes of what is in an archive are rounded.
"""

from bua.download.data_set import DataSet, File, Part

# The vocabularies and splits of the original: path in the data set's folder -> (path below the address, MD5). The
# original also published a vocabulary of relations, but no model reads it.
GENOME_LISTS = "https://raw.githubusercontent.com/peteanderson80/bottom-up-attention/master/data/genome/"
GENOME_VOCABULARIES = {
    "vocab/objects_vocab.txt": ("1600-400-20/objects_vocab.txt", "b0fe0368e4023de7b43f94566dbd8fae"),
    "vocab/attributes_vocab.txt": ("1600-400-20/attributes_vocab.txt", "ed5db248c4bc585d26af2b9b9a012304"),
    "vocab/relations_vocab.txt": ("1600-400-20/relations_vocab.txt", "0ac67a697e9b27a31bc32c1f5e54a1b6"),
}
GENOME_SPLITS = {
    "splits/train.txt": ("train.txt", "68214ddf7a7ce485beb649508903bb88"),
    "splits/val.txt": ("val.txt", "df79508d0eff2f818db98a028680a296"),
    "splits/test.txt": ("test.txt", "50c104a7d7f264c14bc0f77c3cb1c1b7"),
}

GENOME_IMAGES = "https://cs.stanford.edu/people/rak248/VG_100K_2/"
GENOME_JSON = "https://homes.cs.washington.edu/~ranjay/visualgenome/data/dataset/"
_COCO = "http://images.cocodataset.org/"  # its certificate is that of Amazon's S3, so that https does not work
_KARPATHY = "https://cs.stanford.edu/people/karpathy/deepimagesent/"
_VQA = "https://s3.amazonaws.com/cvmlp/vqa/mscoco/vqa/"
# At these commits, so that the files cannot change.
_FLICKR = "https://raw.githubusercontent.com/BryanPlummer/flickr30k_entities/68b3d6f12d1d710f96233f6bd2b6de799d6f4e5b/"
_UP_DOWN_CAPTIONER = (
    "https://raw.githubusercontent.com/peteanderson80/Up-Down-Captioner/0b4e8e5e34953bac5f32368503a68be8a84b6866/"
)


def _genome_images(name: str, folder: str, size: int, count: int) -> File:
    members = {f"{folder}/*.jpg": f"visual_genome/{folder}/"}
    return File(f"{GENOME_IMAGES}{name}", f"visual_genome/{name}", size, members=members, count=count)


def _genome_json(name: str, size: int, unpacked: int | None = None, checksum: str | None = None) -> File:
    archive = f"{name}.json.zip"
    members = {f"{name}.json": "visual_genome/"}
    return File(f"{GENOME_JSON}{archive}", f"visual_genome/{archive}", size, checksum, members, unpacked, 1)


def _genome_lists() -> tuple[File, ...]:
    lists = GENOME_VOCABULARIES | GENOME_SPLITS
    sizes = (12_782, 3_095, 1_039, 3_576_164, 182_362, 182_298)
    return tuple(
        File(GENOME_LISTS + remote, f"visual_genome/{path}", size, f"md5:{md5}")
        for (path, (remote, md5)), size in zip(lists.items(), sizes)
    )


def _vqa(name: str, size: int | None, sha256: str, member: str, count: int = 1) -> File:
    return File(f"{_VQA}{name}", f"vqa/{name}", size, f"sha256:{sha256}", {member: "vqa/"}, count=count)


def _coco_images(split: str, size: int, sha256: str, count: int) -> File:
    url = f"{_COCO}zips/{split}.zip"
    members = {f"{split}/*.jpg": f"coco/{split}/"}
    return File(url, f"coco/{split}.zip", size, f"sha256:{sha256}", members, count=count)


def _coco_captions(year: int, size: int, sha256: str) -> File:
    name = f"annotations_trainval{year}.zip"
    members = {f"captions_{split}{year}.json": "coco/" for split in ("train", "val")}
    return File(f"{_COCO}annotations/{name}", f"coco/{name}", size, f"sha256:{sha256}", members, count=2)


def _karpathy_list(split: str, size: int | None, git: str) -> File:
    name = f"karpathy_{split}_images.txt"
    return File(f"{_UP_DOWN_CAPTIONER}data/coco_splits/{name}", f"coco/{name}", size, f"git:{git}")


CATALOG = {
    "visual-genome": DataSet(
        "Visual Genome, for the detector",
        {
            "images": Part(
                "the 108,249 images",
                (
                    # The last number of each archive is how many of its images the original's splits list, which are
                    # 108,077 together. The archives hold 172 more. Files that were unpacked by hand are complete if
                    # there are at least as many as the splits list.
                    _genome_images("images.zip", "VG_100K", 9_731_705_982, 64_345),
                    _genome_images("images2.zip", "VG_100K_2", 5_471_658_058, 43_732),
                ),
            ),
            "annotations": Part(
                "sizes, objects and attributes",
                (
                    _genome_json(
                        "image_data",
                        1_780_854,
                        18_000_000,
                        "sha256:b87a94918cb2ff4d952cf1dfeca0b9cf6cd6fd204c2f8704645653be1163681a",
                    ),
                    _genome_json("scene_graphs", 114_018_504, 740_000_000),
                    _genome_json("attributes", 83_280_561, 463_000_000),
                ),
            ),
            "lists": Part("the original's vocabularies and splits", _genome_lists()),
            "objects": Part(
                "the objects without relations, which take the place of the scene graphs",
                (_genome_json("objects", 55_323_929, 414_000_000),),
                optional=True,
            ),
            "questions": Part(
                "questions and answers, for BAN", (_genome_json("question_answers", 24_776_315),), optional=True
            ),
            "regions": Part(
                "region descriptions, for the captioner with GRUs",
                (_genome_json("region_descriptions", 127_377_968),),
                optional=True,
            ),
        },
        next={"annotations": "bua prepare-visual-genome --root {root}/visual_genome"},
    ),
    "vqa": DataSet(
        "VQA v2: questions and answers about COCO's images",
        {
            "train": Part(
                "questions and answers of train2014",
                (
                    _vqa(
                        "v2_Questions_Train_mscoco.zip",
                        7_239_401,
                        "05a64b6e2582d06d7585f5429674a9a33851878be1bff9f8668cdcf792df611e",
                        "v2_OpenEnded_mscoco_train2014_questions.json",
                    ),
                    _vqa(
                        "v2_Annotations_Train_mscoco.zip",
                        21_708_861,
                        "fb101bcefe91422c543c2bb6d70af11eb3119d0ff745ae283d09acdf66250853",
                        "v2_mscoco_train2014_annotations.json",
                    ),
                ),
            ),
            "val": Part(
                "questions and answers of val2014",
                (
                    _vqa(
                        "v2_Questions_Val_mscoco.zip",
                        3_494_929,
                        "e71f6c5c3e97a51d050f28243e262b28cd0c48d11a6b4632d769d30d3f93222a",
                        "v2_OpenEnded_mscoco_val2014_questions.json",
                    ),
                    _vqa(
                        "v2_Annotations_Val_mscoco.zip",
                        10_518_930,
                        "0caae7c8d1dafd852727f5ac046bc1efca9b72026bd6ffa34fc489f3a7b3291e",
                        "v2_mscoco_val2014_annotations.json",
                    ),
                ),
            ),
            "test": Part(
                "questions of test2015 and test-dev2015",
                (
                    _vqa(
                        "v2_Questions_Test_mscoco.zip",
                        None,
                        "982e2e687a86514b78ea83af356d151976c5e3fb4168a29ca543610574082ad7",
                        "v2_OpenEnded_mscoco_test*2015_questions.json",
                        count=2,
                    ),
                ),
            ),
        },
        notes=("the images are those of COCO, and the word vectors are GloVe: bua download coco glove",),
        next={
            "train+val": "bua prepare-vqa --root {root}/vqa --output {root}/vqa/prepared"
            " --glove {root}/glove.6B.300d.txt"
        },
    ),
    "coco": DataSet(
        "COCO's images, for VQA and captions",
        {
            "train2014": Part(
                "82,783 images",
                (
                    _coco_images(
                        "train2014",
                        13_510_573_713,
                        "ede4087e640bddba550e090eae701092534b554b42b05ac33f0300b984b31775",
                        82_783,
                    ),
                ),
            ),
            "val2014": Part(
                "40,504 images",
                (
                    _coco_images(
                        "val2014",
                        6_645_013_297,
                        "fe9be816052049c34717e077d9e34aa60814a55679f804cd043e3cbee3b9fde0",
                        40_504,
                    ),
                ),
            ),
            "test2015": Part(
                "81,434 images, for VQA's test splits",
                (
                    _coco_images(
                        "test2015",
                        13_270_587_935,
                        "1a2aa896b81140a850a78fa8bff07d455698d2abf364ff05721763458a8101ca",
                        81_434,
                    ),
                ),
            ),
        },
        next={
            split: "bua extract --config-file vg_r101.yaml --detector output/vg_r101/model_final.pth"
            " --min-boxes 36 --max-boxes 36"
            f" --images {{root}}/coco/{split} --output output/features/{split}_36.flat --format flat-fp16"
            for split in ("train2014", "val2014", "test2015")
        },
    ),
    "captions": DataSet(
        "captions of COCO's images",
        {
            "karpathy": Part(
                "captions with Karpathy's splits and tokens",
                (
                    File(
                        f"{_KARPATHY}caption_datasets.zip",
                        "coco/caption_datasets.zip",
                        36_745_453,
                        "sha256:4cfd70132527b80933105e5829dc9034eaab9573482e2e680abbab6130244817",
                        {"dataset_coco.json": "coco/"},
                        unpacked=144_186_139,
                        count=1,
                    ),
                ),
            ),
            "official": Part(
                "COCO's own captions of 2014",
                (
                    _coco_captions(
                        2014, 252_872_794, "031296bbc80c45a1d1f76bf9a90ead27e94e99ec629208449507a4917a3bf009"
                    ),
                ),
                optional=True,
            ),
            "lists": Part(
                "the images of Karpathy's splits, for the official captions",
                (
                    _karpathy_list("train", None, "9c77576852a49279dc4d9bc915915ab5bd0223a9"),
                    _karpathy_list("val", 224_080, "2598141aa7fd04c1f183b086063abf7d843c3e58"),
                    _karpathy_list("test", 224_028, "b9241a3226ce340836b7d3d590b41d6fab47dd55"),
                ),
                optional=True,
            ),
            "official2017": Part(
                "COCO's own captions of 2017, for BAN's second table of word vectors",
                (
                    _coco_captions(
                        2017, 252_907_541, "113a836d90195ee1f884e704da6304dfaaecff1f023f49b6ca93c4aaae470268"
                    ),
                ),
                optional=True,
            ),
        },
        notes=(
            "the images are those of COCO: bua download coco --only train2014 val2014",
            "without Karpathy's file, the same splits are made of: bua download captions --only official lists",
        ),
        next={
            "karpathy": "bua prepare-captions --karpathy {root}/coco/dataset_coco.json --output {root}/coco/captions",
            "official+lists": "bua prepare-captions"
            " --coco {root}/coco/captions_train2014.json {root}/coco/captions_val2014.json"
            " --split train {root}/coco/karpathy_train_images.txt --split val {root}/coco/karpathy_val_images.txt"
            " --split test {root}/coco/karpathy_test_images.txt --output {root}/coco/captions",
        },
    ),
    "flickr30k": DataSet(
        "Flickr30k Entities, for phrase grounding",
        {
            "annotations": Part(
                "sentences with marked phrases, and boxes",
                (
                    File(
                        f"{_FLICKR}annotations.zip",
                        "flickr30k_entities/annotations.zip",
                        29_284_070,
                        "git:95513f3315f98068d0aeb558649ebe09fbeffe95",
                        {
                            "Annotations/*.xml": "flickr30k_entities/Annotations/",
                            "Sentences/*.txt": "flickr30k_entities/Sentences/",
                        },
                        count=2 * 31_783,
                    ),
                ),
            ),
            "splits": Part(
                "the images of train, val and test",
                (
                    File(
                        f"{_FLICKR}train.txt",
                        "flickr30k_entities/train.txt",
                        320_344,
                        "git:20d370a205af79b99c928e6d8b6efda0227e4ae1",
                    ),
                    File(
                        f"{_FLICKR}val.txt",
                        "flickr30k_entities/val.txt",
                        10_758,
                        "git:54b04f99694014942fa7afa3b8b383fb692cacea",
                    ),
                    File(
                        f"{_FLICKR}test.txt",
                        "flickr30k_entities/test.txt",
                        10_733,
                        "git:a3cfe568a00deda3e3bc89eb2fdbeeb6c2aa8301",
                    ),
                ),
            ),
        },
        notes=(
            "the images need a form: fill it in at http://hockenmaier.cs.illinois.edu/DenotationGraph/, and put them"
            " into {root}/flickr30k/images",
            "the word vectors are GloVe: bua download glove",
        ),
        next={
            "annotations+splits": "bua prepare-flickr30k --root {root}/flickr30k_entities"
            " --output {root}/flickr30k/prepared --glove {root}/glove.6B.300d.txt"
        },
    ),
    "glove": DataSet(
        "GloVe's word vectors of 300 dimensions, for VQA and grounding",
        {
            "6B": Part(
                "trained on 6 billion tokens",
                (
                    File(
                        "https://nlp.stanford.edu/data/glove.6B.zip",
                        "glove.6B.zip",
                        862_182_613,
                        "sha256:617afb2fe6cbd085c235baf7a465b96f4112bd7f7ccb2b2cbd649fed9cbcf2fb",
                        {"glove.6B.300d.txt": ""},
                        unpacked=1_037_962_819,
                        count=1,
                    ),
                ),
            )
        },
    ),
}
