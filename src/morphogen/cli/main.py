"""The command ``morphogen``: attaches the rooms lazily, prints errors as one line, exits with 2 on bad input."""

from __future__ import annotations

import importlib.util
import os
import signal
import sys
from collections.abc import Sequence
from typing import NoReturn

from cyclopts import App

from morphogen._version import __version__
from morphogen.cli.common import fold_option, fold_settings
from morphogen.cli.process import Ended, ended_by_signals, quiet_libraries, say_ended
from morphogen.core.errors import LONGEST, ConfigError, MorphogenError, shortened
from morphogen.core.printing import printable, use_terminal
from morphogen.core.running.threads import wait_passively

# One line per room. The module is imported only when its verb runs; a room that is not installed is absent.
ROOMS = {
    "slide": "Open, tile and encode slides; import and export tile features.",
    "expression": "Spatial gene expression from H&E: prepare, train, predict, evaluate.",
    "stain": "Virtual staining, H&E to IHC: register, train, predict, evaluate.",
    "tissue": "Tissue images of any size from embeddings: train, patches, canvas, prior, evaluate.",
    "layout": "Labelled images in the style of other slides, and the segmentation network they feed.",
    "checkpoint": "Look into published checkpoints and import them.",
    "view": "Slides, stains, genes and outlines in the browser, over one another or side by side.",
    "demo": "Every task on small data, in one HTML report.",
    "doctor": "Versions, devices, optional parts, encoders: what works here and what to do about the rest.",
}


def build_app() -> App:
    """The command tree; cheap, because rooms are named and not imported."""
    app = App(
        name="morphogen",
        version=__version__,
        help="Diffusion models for computational pathology: virtual IHC, spatial gene expression.",
        help_format="markdown",
        suppress_keyboard_interrupt=False,  # said in `main`
        result_action="return_value",
    )
    app.register_install_completion_command()
    for name, text in ROOMS.items():
        module = f"morphogen.cli.{name}"
        if importlib.util.find_spec(module) is not None:
            app.command(f"{module}:app", name=name, help=text)
    return app


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point.

    Exit status: 0 done, 1 a bug, 2 bad input or a place that cannot be written, 3 some of several items failed and the
    others are done, 130 interrupted (Ctrl-C), 143 told to end (SIGTERM).
    """
    tokens = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in tokens or os.environ.get("MORPHOGEN_DEBUG") == "1"
    tokens = fold_settings([token for token in tokens if token != "--debug"])
    use_terminal()
    wait_passively()
    with quiet_libraries(debug), ended_by_signals():
        try:
            status = _run(tokens)
        except MorphogenError as error:
            _fail(error, error, debug)
        except Ended:
            say_ended(signal.SIGTERM)
        except KeyboardInterrupt:
            say_ended(signal.SIGINT)
        except BrokenPipeError:  # `morphogen … | head`
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(0)
        except OSError as error:
            if error.filename is None and error.errno is None:
                raise
            from morphogen.core.files import system_error

            _fail(system_error(error), error, debug)
        except Exception as error:
            from cyclopts import CycloptsError

            if not isinstance(error, CycloptsError):
                raise
            _fail(shortened(printable(error), LONGEST), error, debug)
    code = status if isinstance(status, int) else 0
    if "morphogen.training" in sys.modules:
        from morphogen.training import leave

        leave(code)  # one process of several
    sys.exit(code)


def _run(tokens: list[str]) -> object:
    """Run the verb. A ``--key`` it does not name is a setting of its configuration, where that has such a key."""
    from cyclopts import UnknownOptionError

    unknown: dict[str, UnknownOptionError] = {}
    while True:
        try:
            return build_app()(tokens, exit_on_error=False, print_error=False)
        except UnknownOptionError as error:
            option = error.token.keyword or error.token.value
            takes_settings = any("--set" in argument.names for argument in error.argument_collection)
            folded = fold_option(tokens, option) if takes_settings else None
            if folded is None:
                raise
            unknown[option.partition("=")[0].lstrip("-").replace("-", "_")] = error
            tokens = folded
        except ConfigError as error:
            for key, original in unknown.items():
                if f"unknown setting '{key}'" in str(error):
                    raise original from None
            raise


def _fail(message: object, error: BaseException, debug: bool) -> NoReturn:
    if debug:
        raise error
    print(f"morphogen: {printable(message)}", file=sys.stderr)
    sys.exit(2)


if __name__ == "__main__":
    main()
