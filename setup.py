import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+)"', (ROOT / "bua" / "__init__.py").read_text()).group(1)

setup(
    # The name bua on PyPI belongs to another package. What one imports is bua.
    name="bottom-up-attention",
    version=VERSION,
    description="Bottom-up attention: region features for vision and language, and models for tasks on them",
    long_description=(ROOT / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    classifiers=[
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
    python_requires=">=3.10",
    # The configurations stand at the top of a checkout. In a wheel they are part of the package (bua/config_files.py).
    packages=[*find_packages(include=["bua", "bua.*"]), "bua.configs"],
    package_dir={"bua.configs": "configs"},
    package_data={
        "bua.app": ["templates/*"],
        "bua.visualization": ["templates/*"],
        "bua.weights": ["shapes/*"],
        "bua.configs": ["*.yaml", "*/*.yaml", "*/*/*.yaml"],
    },
    entry_points={"console_scripts": ["bua = bua.commands:main"]},
    install_requires=[
        "torch>=2.11",
        "torchvision>=0.26",  # the first release that matches torch 2.11
        # Detectron2 requires these releases of fvcore and of iopath, which fvcore imports and bua does not. One
        # environment should serve both engines.
        "fvcore>=0.1.5,<0.1.6",
        "iopath>=0.1.7,<0.1.10",
        "numpy>=1.26",
        "opencv-python-headless>=4.8",
        "pillow>=10",
        "pyyaml>=6",
        "pycocotools>=2.0.7",
        "h5py>=3.10",
        "lmdb>=1.4",
        "orjson>=3.9",
        "tqdm>=4.65",
        "protobuf>=4.22",
        "tensorboard>=2.15",  # imported by torch.utils.tensorboard
        "accelerate>=1.0",
        "huggingface_hub>=0.23",
        # httpx2 continues httpx, and huggingface_hub brings it too. It needs Python 3.11.
        'httpx2>=2,<3; python_version >= "3.11"',
        'httpx>=0.27,<1; python_version < "3.11"',
        "jinja2>=3.1",
        "matplotlib>=3.8",
    ],
    extras_require={
        "captioning": ["pycocoevalcap>=1.2", "tokenizers>=0.15"],
        "ray": ["ray>=2.9"],
        # Gradio 6 needs a release of pillow below 13. Without both bounds, pip would fall back to a Gradio of years ago
        # that cannot be imported.
        "app": ["gradio>=6,<7", "pillow>=10,<13"],
        # effdet takes any later release of timm, but imports parts that a release may move; it is tested with timm 1.0.
        # Its own minor releases change the names of parameters.
        "effdet": ["effdet>=0.4.1,<0.5", "timm>=1.0,<2"],
        "uniter": ["msgpack>=1.0,<2"],  # reads UNITER's LMDBs
        # What Detectron2 itself needs from PyPI. Detectron2 is on no package index: README.md says how to install it.
        "detectron2": ["black", "cloudpickle", "hydra-core>=1.1", "omegaconf>=2.1,<2.4", "packaging", "tabulate"],
        "docs": ["mkdocs-material>=9.5", "mkdocstrings[python]>=0.25", "ruff>=0.6"],  # ruff breaks long lines
        "dev": [
            "setuptools>=64",  # builds the wheel in the tests
            "build>=1.2",
            "twine>=6",
            "pytest-xdist>=3.5",
            "pytest>=8",
            "hypothesis>=6.100",
            "msgpack>=1.0,<2",
            "ruff>=0.6",
            "import-linter>=2.0",
            "mypy>=1.11",
            "pre-commit>=3.7",
            "types-protobuf",
            "types-PyYAML",
            "types-tqdm",
        ],
    },
)
