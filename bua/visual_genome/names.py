"""Cleans the names of objects, attributes and relations by the rules of the original.

The rules are those of data/genome/setup_vg.py of peteanderson80/bottom-up-attention: ``clean_string``,
``clean_objects`` and ``clean_attributes``.
"""

COMMON_ADJECTIVES = frozenset(
    {"white", "black", "blue", "green", "red", "brown", "yellow", "silver", "orange", "gray", "grey", "pink"}
    | {"small", "large", "tall", "long", "dark", "wooden", "metal"}
)


def clean_name(text: str) -> str:
    """Returns a name in lower case and without one dot at the end: "Sitting on." -> "sitting on"."""
    text = text.lower().strip()
    return text[:-1].strip() if text.endswith(".") else text


def clean_object_name(text: str) -> tuple[str, list[str]]:
    """Returns an object's name and the attributes in it: "Small white dog." -> ("dog", ["small", "white"])."""
    name = clean_name(text)
    words = name.split()
    if len(words) > 1 and COMMON_ADJECTIVES.issuperset(words[:-1]):
        return words[-1], words[:-1]
    return name, []


def clean_attribute(text: str) -> list[str]:
    """Returns the attributes in one entry: "Red and shiny." -> ["red", "shiny"]."""
    attribute = clean_name(text)
    if attribute == "black and white":
        return [attribute]
    return [part.strip() for part in attribute.split(" and ")]
