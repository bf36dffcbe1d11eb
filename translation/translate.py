# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""The command `ea-hf translate`, beside the script that makes its models.

python translation/translate.py output/en-de --input news.en --output news.de
"""

from ea_hf.training.command_line import run_main
from ea_hf.translate import main


if __name__ == "__main__":
    run_main(main)
