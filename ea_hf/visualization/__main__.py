# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""Shows how the attention maps of a checkpoint evolve, on a page for the browser, or as pictures.

python -m ea_hf.visualization output/film_sentiment "A film that never quite finds its feet." --output maps.html
python -m ea_hf.visualization output/verse_pairs "First sentence." "Second sentence." --vanilla --output maps.html
python -m ea_hf.visualization output/en-de "Open the file." --target "Öffnen Sie die Datei." --output maps.html
python -m ea_hf.visualization output/digits-ea_vit --image three.png --layers 1 2 --heads 1 --png maps.png
"""

import argparse
import sys
from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoTokenizer, PreTrainedModel

from ..map_recording import evolutions_of
from ..models.auto import MODELS
from ..models.image_processing_ea import to_plain_image
from ..models.loading_faults import loading_told
from ..training.command_line import ArgumentParser, Mistake, program_name, run_main
from .examples import ExampleMaps, image_maps, text_maps
from .figures import save_figures
from .page import write_page


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = ArgumentParser(
        prog=program_name("ea_hf.visualization"),
        description=__doc__,
    )
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="A directory, or a name on the Hub.")
    parser.add_argument("text", nargs="?", metavar="SENTENCE", help="With the prefix that the model wants, if any.")
    parser.add_argument("text_pair", nargs="?", metavar="SECOND", help="The second sentence of a pair.")
    parser.add_argument("--target", help="What EA-T5 is to have written. Default: what it writes by itself.")
    parser.add_argument("--image", type=Path, help="A file with an image, for EA-ViT and EA-ResNet.")
    parser.add_argument("--layers", type=int, nargs="+", metavar="N", help="From 1 in each chain. Default: all.")
    parser.add_argument(
        "--heads", type=int, nargs="+", metavar="N", help="From 1. Default: all that a page has room for."
    )
    parser.add_argument("--vanilla", action="store_true", help="Also show the same weights with both EA weights 0.")
    parser.add_argument("--output", type=Path, metavar="PAGE.HTML", help="The page to write.")
    parser.add_argument(
        "--png",
        type=Path,
        metavar="PICTURE.PNG",
        help="Pictures to write (needs matplotlib), as .png, .svg or .pdf; the names of chain and head are added where there are several.",
    )
    args = parser.parse_args(argv)
    if args.output is None and args.png is None:
        parser.error("say where to write: --output maps.html, --png maps.png, or both")
    if (args.text is None) == (args.image is None):
        parser.error(
            "give a sentence after the checkpoint, or --image with a file" + (", not both" * bool(args.image))
        )
    if args.image is not None and args.target is not None:
        parser.error("--target is for models of text; leave it out with --image")
    for path, suffixes in ((args.output, (".html", ".htm")), (args.png, (".png", ".svg", ".pdf"))):
        if path is not None and path.suffix.lower() not in suffixes:
            parser.error(f"{path} should end with {' or '.join(suffixes)}")
    return args


def load_model(checkpoint: str) -> PreTrainedModel:
    """The model of the class that was saved.

    Raises:
        Mistake: there is none, or its maps do not evolve; with what to do.
    """
    try:
        config = AutoConfig.from_pretrained(checkpoint)
        (architecture, *_) = config.architectures or [None]
        # The class that was saved, since another one might lack weights.
        model_class = next((one for _, one in MODELS if one.__name__ == architecture), AutoModel)
        with loading_told(checkpoint):
            model = model_class.from_pretrained(checkpoint)
    except (OSError, ValueError) as error:
        raise Mistake(
            f"{checkpoint} holds no checkpoint that can be loaded: give a directory with config.json and "
            f"model.safetensors, or a name on the Hub.\n{error}"
        ) from error
    try:
        evolutions_of(model.base_model)
    except ValueError as error:
        raise Mistake(f"{checkpoint}: {error}") from error
    return model


def load(auto_class: type, checkpoint: str, name: str) -> Any:
    """Its tokenizer or image processor.

    Raises:
        Mistake: there is none; with what to do.
    """
    try:
        loaded = auto_class.from_pretrained(checkpoint)
        # Without its files Transformers makes a tokenizer that knows no word.
        if auto_class is AutoTokenizer and len(loaded) <= len(loaded.all_special_ids):
            raise OSError("There are no files of a tokenizer.")
        return loaded
    except (OSError, ValueError, ImportError, LookupError, TypeError) as error:
        raise Mistake(
            f"{checkpoint} has no {name} that can be loaded; save one there with `{name.split()[-1]}.save_pretrained"
            f"({checkpoint!r})`.\n{error}"
        ) from error


def find_maps(args: argparse.Namespace) -> ExampleMaps:
    model = load_model(args.checkpoint)
    takes_images = model.main_input_name == "pixel_values"
    if takes_images != (args.image is not None):
        wanted = "images: give one with --image" if takes_images else "text: give a sentence instead of --image"
        raise Mistake(f"{args.checkpoint} is a model of {wanted}.")
    chosen = {"layers": args.layers, "heads": args.heads, "vanilla": args.vanilla}
    try:
        if takes_images:
            image = open_image(args.image, model.config.num_channels)
            return image_maps(model, load(AutoImageProcessor, args.checkpoint, "image processor"), image, **chosen)
        tokenizer = load(AutoTokenizer, args.checkpoint, "tokenizer")
        return text_maps(model, tokenizer, args.text, args.text_pair, args.target, **chosen)
    except ValueError as error:
        raise Mistake(str(error)) from error


def open_image(path: Path, num_channels: int) -> Any:
    """An image of a file, grey or in colour as the model wants it, turned as the camera was held."""
    try:
        from PIL import Image
    except ImportError as error:
        raise Mistake("Images need Pillow: pip install pillow") from error
    try:
        with Image.open(path) as image:
            return to_plain_image(image, num_channels)
    except OSError as error:
        raise Mistake(f"{path} cannot be read as an image: {error}") from error


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    maps = find_maps(args)
    try:
        for path in filter(None, (args.output, args.png)):
            path.parent.mkdir(parents=True, exist_ok=True)
        if args.output is not None:
            count = write_page(maps, args.output, drop_heads=args.heads is None)
            if count < len(maps.heads):
                print(
                    f"The page has room for {count} of {len(maps.heads)} heads; choose others with --heads.",
                    file=sys.stderr,
                )
            print(f"Wrote {args.output} ({args.output.stat().st_size / 1e6:.1f} MB); open it in a browser.")
        if args.png is not None:
            print(f"Wrote {', '.join(map(str, save_figures(maps, args.png)))}.")
    except (ValueError, ImportError) as error:
        raise Mistake(str(error)) from error
    except OSError as error:
        raise Mistake(f"This cannot be written: {error}") from error


if __name__ == "__main__":
    run_main(main)
