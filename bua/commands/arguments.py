"""Arguments that several commands have."""

import argparse


def add_config_file(parser: argparse._ActionsContainer, what: str, *, default: str | None = None) -> None:
    """Adds --config-file.

    Args:
        what: What the file describes, for the help.
        default: The file that is used if none is given; None if one must be given.
    """
    shown = "; default: %(default)s" if default else ""
    parser.add_argument("--config-file", required=default is None, default=default, help=f"{what}{shown}")


def add_detector(parser: argparse.ArgumentParser, default: str = "MODEL.WEIGHTS of the configuration") -> None:
    """Adds --detector, the checkpoint of the detector. --weights is its former name in some commands.

    Args:
        default: What is used if none is given, for the help.
    """
    parser.add_argument(
        *("--detector", "--weights"),
        dest="detector",
        help="checkpoint of the detector: a file, the name of a released one, or an address (--weights is the "
        f"option's former name); default: {default}",
    )


def add_overrides(parser: argparse.ArgumentParser, before: str = "") -> None:
    """Adds the configuration keys and values at the end of a command.

    Args:
        before: Words that are added to the help.
    """
    parser.add_argument(
        "overrides", nargs="*", metavar="KEY VALUE", help=f"keys of the configuration and their values{before}"
    )
