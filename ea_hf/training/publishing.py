# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""The push of a finished run to the Hub."""

import argparse
import logging
import re
import shlex
import sys
from collections.abc import Container
from pathlib import Path

from huggingface_hub import HfApi, get_token

from .model_card import LOCAL_NOTE, MAX_REASON


logger = logging.getLogger(__name__)

# What stays here when a run is pushed; hidden files too.
NOT_PUSHED = ("checkpoint-*/**", "logs/**", ".*")

OTHER_REMEDY = "Look at the message above, and check `hf auth whoami`."
REMEDIES_BY_STATUS: tuple[tuple[Container[int], str], ...] = (
    (
        (401,),
        "The token is missing, wrong or expired: run `hf auth login` with a token that may write, or pass --hub_token.",
    ),
    (
        (403,),
        "The token may not write there, or the account's storage is full: take a token that may write (`hf auth login`), "
        "free some storage, or choose another --hub_model_id.",
    ),
    (
        (404,),
        "There is no such account or repository, or the token does not see it: check the name (--hub_model_id) and "
        "`hf auth whoami`.",
    ),
    (
        (402, 413, 507),
        "The files are too large for the storage that the account has left: delete what is no longer needed, or get more "
        "storage (https://huggingface.co/settings/billing).",
    ),
    ((429,), "The Hub has had too many requests: wait some minutes."),
    (range(500, 600), "The Hub is out of order: wait, and look at https://status.huggingface.co."),
)
# By the name of the error or of one of its bases: the HTTP library's own differ among versions of huggingface_hub.
UNREACHABLE = "The Hub cannot be reached: check the network, proxies, and HF_ENDPOINT if it is set."
REMEDIES_BY_ERROR = {
    "LocalTokenNotFoundError": "There is no token: run `hf auth login`, or pass --hub_token.",
    "OfflineModeIsEnabled": "HF_HUB_OFFLINE forbids the network: unset it.",
    "HFValidationError": "The name is not one that the Hub takes: choose another --hub_model_id.",
    "LocalProtocolError": "The token has characters that no token has: run `hf auth login`, or look at --hub_token.",
    "TransportError": UNREACHABLE,
    "ConnectionError": UNREACHABLE,
    "TimeoutError": UNREACHABLE,
}


def push_to_hub(output_dir: Path, args: argparse.Namespace) -> None:
    """Pushes a finished run, without its checkpoints and logs.

    Raises:
        SystemExit: with status 1 and what to do, if the push fails; the local model stays as it is.
    """
    repo_id = args.hub_model_id or output_dir.resolve().name
    try:
        api = HfApi(token=args.hub_token)
        repo = api.create_repo(repo_id, private=args.hub_private_repo or None, exist_ok=True)
        _name_repository_in_card(output_dir, repo.repo_id)
        api.upload_folder(
            repo_id=repo.repo_id,
            folder_path=output_dir,
            commit_message="Fine-tuned with ea_hf",
            ignore_patterns=list(NOT_PUSHED),
        )
    except Exception as error:  # whatever the network, the server or the token brought about
        reason, remedy = _explain(error)
        for token in filter(None, (args.hub_token, get_token())):
            for written in (token, repr(token)[1:-1]):
                reason = reason.replace(written, "...")
        exclude = " ".join(f"--exclude {shlex.quote(pattern)}" for pattern in NOT_PUSHED)
        private = " --private" if args.hub_private_repo else ""
        sys.exit(
            f"The model is finished and saved in {output_dir}, but pushing it to {repo_id} failed:\n"
            f"{reason[:MAX_REASON]}\n{remedy} Then push it with:\n"
            f"hf upload {shlex.quote(repo_id)} {shlex.quote(str(output_dir))} . {exclude}{private}"
        )
    logger.info(f"Pushed to {repo.repo_id}.")


def _name_repository_in_card(output_dir: Path, repo_id: str) -> None:
    """Lets the card load the model by its full name on the Hub, which only the Hub knows."""
    card = output_dir / "README.md"
    if card.exists():
        text = card.read_text(encoding="utf-8").replace(LOCAL_NOTE, "")
        code = re.sub(r'(?<=from_pretrained\()"(?:[^"\\]|\\.)*"', lambda _: f'"{repo_id}"', text)
        card.write_text(code, encoding="utf-8")


def _explain(error: BaseException) -> tuple[str, str]:
    """What happened, and what to do, by the status that the server gave or by what else lies below the error."""
    cause: BaseException | None = error
    while cause is not None:
        status = getattr(getattr(cause, "response", None), "status_code", None)
        if status is not None:
            remedies = (remedy for statuses, remedy in REMEDIES_BY_STATUS if status in statuses)
        else:
            names = (kind.__name__ for kind in type(cause).__mro__)
            remedies = (REMEDIES_BY_ERROR[name] for name in names if name in REMEDIES_BY_ERROR)
        remedy = next(remedies, None)
        if remedy is not None:
            messages = dict.fromkeys(str(e).strip() or type(e).__name__ for e in (error, cause))
            return "\n".join(messages), remedy
        cause = cause.__cause__ or cause.__context__
    return str(error).strip() or type(error).__name__, OTHER_REMEDY
