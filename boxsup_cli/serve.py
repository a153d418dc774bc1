"""``boxsup serve``: boxes that are drawn in Label Studio come back as masks."""

import argparse
import contextlib
import os

from boxsup_cli.arguments import Commands, Existing, add_device_argument, count
from boxsup_cli.errors import BadInput, bad_input
from boxsup_cli.method import add_method_arguments, chosen_method

_EPILOG = """
example, for a Label Studio on this machine that serves the folder 'photos':
  $ boxsup serve --images photos
  $ LABEL_STUDIO_LOCAL_FILES_SERVING_ENABLED=true LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT=$PWD/photos label-studio start

Connect http://localhost:9090 in the project's settings, under Model, for interactive preannotations. The labelling
interface needs <RectangleLabels ... smart="true"> and <BrushLabels> of the same labels; 'boxsup label --label-studio'
writes one. Images that are not below --images are asked from Label Studio, at LABEL_STUDIO_URL with the access token
LABEL_STUDIO_API_KEY of the environment.
"""


def add_parser(commands: Commands) -> argparse.ArgumentParser:
    """Add the subcommand; returns its parser."""
    parser = commands.add_parser(
        "serve",
        help="boxes drawn in Label Studio come back as masks",
        description="Be a model of Label Studio (its ML backend protocol): boxes in, brush masks out.",
        epilog=_EPILOG,
    )
    method = parser.add_argument_group("method")
    add_method_arguments(method)
    add_device_argument(method)
    server = parser.add_argument_group("server")
    server.add_argument(
        "--images", action=Existing, metavar="DIR", help="folder of the tasks' images, found by their names"
    )
    server.add_argument("--port", type=count, default=9090, metavar="N", help="to listen on (default: %(default)s)")
    server.add_argument(
        "--host",
        default="localhost",
        metavar="NAME",
        help="address to listen on (default: %(default)s, this machine alone); 0.0.0.0: whoever reaches this machine",
    )
    return parser


def run(args: argparse.Namespace) -> None:
    """Serve until Ctrl-C.

    Raises:
        BadInput: the network or folder cannot be used, or the port is taken.
    """
    if args.images and not os.path.isdir(args.images):
        raise BadInput(f"--images: there is no folder '{args.images}'.")

    from boxsup_cli.console import quiet_libraries, show
    from boxsup_d2.api import load
    from boxsup_d2.modeling.box_to_mask import box_to_mask_classes
    from boxsup_d2.serving import LabelStudioBackend, TaskImages, make_server

    choice = chosen_method(args)
    quiet_libraries()
    with bad_input():
        if choice.method:
            model = load(choice.method, choice.weights, args.device, config_file=choice.config, opts=choice.opts)
        else:
            model = load(choice.config or "", choice.weights, args.device, opts=choice.opts)
    kind = box_to_mask_classes().get(model.cfg.MODEL.META_ARCHITECTURE)
    if kind is not None and kind.num_known_classes(model.cfg) is not None:
        raise BadInput(
            f"--config: '{choice.config}' knows its classes by number, and projects name them: serve another."
        )
    backend = LabelStudioBackend(model, TaskImages(args.images), f"boxsup_d2 {choice.method or choice.config}")
    with bad_input():
        try:
            server = make_server(backend, args.host, args.port)
        except (OSError, OverflowError) as error:
            raise OSError(
                f"--host {args.host} --port {args.port} cannot be listened on ({error}): name others."
            ) from error
    with server, contextlib.suppress(KeyboardInterrupt):  # which is how it ends
        show(f"{model!r} answers Label Studio at http://{args.host}:{server.server_port}; Ctrl-C ends it")
        server.serve_forever()
