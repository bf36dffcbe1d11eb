# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""Translates a text line by line with a model that run_translation.py made, or any other that translates.

    ea-hf translate output/en-de --input news.en --output news.de
    echo "Open the file." | ea-hf translate output/en-de

Also `python translation/translate.py`.

Lines are read in windows; within one, lines of similar length share a batch. Empty lines stay empty.
"""

import argparse
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from typing import IO, Any

import torch
from tqdm.auto import tqdm
from transformers import AutoModelForSeq2SeqLM, PreTrainedModel, PreTrainedTokenizerBase

from .models.loading_faults import loading_told
from .models.pipeline_translation import find_settings
from .training.command_line import ArgumentParser, run_main
from .training.languages import cut, has_languages, set_first_tokens, set_languages
from .training.local_files import check_not_an_input, decode_lines, read_lines, written_whole
from .training.model_loading import check_vocabulary, longest_input
from .training.tokenizer_loading import MANY_UNKNOWN, check_location, load_tokenizer


STANDARD_INPUT = 0


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("model_name_or_path", metavar="CHECKPOINT", help="A directory, or a name on the Hub.")
    parser.add_argument("--input", help="A text file, maybe gzipped. Default: standard input.")
    parser.add_argument("--output", type=Path, help="Default: standard output.")
    parser.add_argument("--tokenizer_name", help="Default: the checkpoint's.")
    parser.add_argument("--source_lang", help="Only for a checkpoint, or a tokenizer, that knows several languages.")
    parser.add_argument("--target_lang", help="Likewise.")
    parser.add_argument("--source_prefix", help="Put before each line. Default: the checkpoint's.")
    parser.add_argument("--num_beams", type=int, help="Default: the checkpoint's; 1 is greedy search.")
    parser.add_argument(
        "--max_source_length",
        type=int,
        help="Default: the checkpoint's, or 1024 tokens, or as many as the model takes.",
    )
    parser.add_argument("--max_target_length", type=int, help="Default: the checkpoint's, or 128 tokens.")
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--window", type=int, help="Lines to read ahead. Default: 32 batches; 1 at a terminal.")
    parser.add_argument("--device", help='Such as "cpu" or "cuda:1". Default: an accelerator if there is one.')
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32")
    parser.add_argument("--trust_remote_code", action="store_true")
    args = parser.parse_args(argv)
    for name in ("num_beams", "max_source_length", "max_target_length", "batch_size", "window"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            parser.error(f"--{name} is {getattr(args, name)}; it must be at least 1")
    return args


class Translator:
    """A model with what it takes to translate lines.

    Attributes:
        lines_cut: how many lines were too long so far.
        tokens, unknown_tokens: how many tokens were read so far, and how many of them the tokenizer does not know.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        source_prefix: str = "",
        max_source_length: int = 1024,
        batch_size: int = 32,
        **generation: Any,
    ):
        self.model, self.tokenizer, self.source_prefix = model.eval(), tokenizer, source_prefix
        self.max_source_length, self.batch_size, self.generation = max_source_length, batch_size, generation
        self.lines_cut = self.tokens = self.unknown_tokens = 0

    def translate(self, lines: Iterable[str], window: int) -> Iterator[str]:
        """Yields a translation per line, in order; reads at most `window` lines ahead."""
        lines = iter(lines)
        while part := list(islice(lines, window)):
            yield from self._translate_window(part)

    def _translate_window(self, lines: list[str]) -> list[str]:
        translations = [""] * len(lines)
        filled = [i for i, line in enumerate(lines) if line.strip()]
        if not filled:
            return translations
        encoded = self.tokenizer([self.source_prefix + lines[i] for i in filled], verbose=False)["input_ids"]
        self.lines_cut += sum(len(ids) > self.max_source_length for ids in encoded)
        self.tokens += sum(map(len, encoded))
        self.unknown_tokens += sum(ids.count(self.tokenizer.unk_token_id) for ids in encoded)
        ids_of = {i: cut(ids, self.max_source_length, self.tokenizer) for i, ids in zip(filled, encoded, strict=True)}
        order = sorted(filled, key=lambda i: -len(ids_of[i]))
        for start in range(0, len(order), self.batch_size):
            indices = order[start : start + self.batch_size]
            batch = self.tokenizer.pad({"input_ids": [ids_of[i] for i in indices]}, return_tensors="pt")
            with torch.no_grad():
                generated = self.model.generate(
                    input_ids=batch["input_ids"].to(self.model.device),
                    attention_mask=batch["attention_mask"].to(self.model.device),
                    num_return_sequences=1,  # a checkpoint's own settings may ask for more
                    return_dict_in_generate=False,
                    **self.generation,
                )
            texts = self.tokenizer.batch_decode(generated, skip_special_tokens=True)
            for i, text in zip(indices, texts, strict=True):
                translations[i] = " ".join(text.splitlines())
        return translations


def load_translator(args: argparse.Namespace) -> Translator:
    check_location(args.model_name_or_path)
    tokenizer_name = args.tokenizer_name or args.model_name_or_path
    tokenizer = load_tokenizer(tokenizer_name, trust_remote_code=args.trust_remote_code, has_option=True)
    with loading_told(args.model_name_or_path):
        model = AutoModelForSeq2SeqLM.from_pretrained(
            args.model_name_or_path, dtype=getattr(torch, args.dtype), trust_remote_code=args.trust_remote_code
        )
    check_vocabulary(model, tokenizer, tokenizer_name)
    device = args.device or torch.accelerator.current_accelerator() or "cpu"
    try:
        settings = find_settings(model.config, args.source_lang, args.target_lang)
    except ValueError:
        if args.source_prefix is None:
            raise
        settings = {}
    set_languages(
        tokenizer, args.source_lang or settings.get("source_lang"), args.target_lang or settings.get("target_lang")
    )
    if has_languages(tokenizer):
        set_first_tokens(model, tokenizer)
    prefix = settings.get("prefix", "") if args.source_prefix is None else args.source_prefix
    max_source_length = args.max_source_length or settings.get("max_source_length")
    longest = longest_input(model)
    if longest is not None and (max_source_length or 0) > longest:
        raise ValueError(
            f"--max_source_length is {max_source_length}, but {args.model_name_or_path} ends at {longest} tokens."
        )
    length = args.max_target_length or settings.get("max_length") or model.generation_config.max_new_tokens or 128
    return Translator(
        model.to(device),
        tokenizer,
        prefix,
        max_source_length or min(1024, longest or 1024),
        args.batch_size,
        num_beams=args.num_beams or settings.get("num_beams") or model.generation_config.num_beams or 1,
        max_new_tokens=length,
        max_length=None,
    )


def check_files(args: argparse.Namespace) -> None:
    """Raises an error, before anything is loaded, if there is no input, or the output is the input or has no place."""
    if args.input is not None and (not os.path.exists(args.input) or os.path.isdir(args.input)):
        raise FileNotFoundError(f"--input {args.input} does not exist or is not a file.")
    if args.output is None:
        return
    if args.output.is_dir():
        raise IsADirectoryError(f"--output {args.output} is a directory; name a file.")
    if not args.output.resolve().parent.is_dir():
        raise FileNotFoundError(f"--output {args.output} has no place: its directory does not exist.")
    if args.input is not None:
        check_not_an_input(args.output, [args.input])
    elif args.output.is_file() and os.path.samestat(args.output.stat(), os.fstat(STANDARD_INPUT)):
        raise ValueError(f"--output {args.output} is also the standard input; choose another output.")


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    check_files(args)
    translator = load_translator(args)
    at_terminal = args.input is None and sys.stdin.isatty()
    window = args.window or (1 if at_terminal else 32 * args.batch_size)
    with ExitStack() as stack:
        output: IO[str] = sys.stdout
        if args.output is not None:
            output = stack.enter_context(written_whole(args.output))
        lines = (
            line.rstrip("\r\n")
            for line in (read_lines(args.input) if args.input else decode_lines(sys.stdin.buffer, "standard input"))
        )
        disable = True if args.output is None else None  # None: unless it is a terminal
        for translation in tqdm(translator.translate(lines, window), unit=" lines", disable=disable):
            print(translation, file=output, flush=True)
    if translator.unknown_tokens > MANY_UNKNOWN * translator.tokens:
        share = translator.unknown_tokens / translator.tokens
        print(f"{share:.0%} of the input's tokens are unknown to the tokenizer.", file=sys.stderr)
    if translator.lines_cut:
        print(
            f"{translator.lines_cut} lines have more than {translator.max_source_length} tokens and were cut "
            "(--max_source_length).",
            file=sys.stderr,
        )


if __name__ == "__main__":
    run_main(main)
