"""`combo-hf push`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from combo_hf.commands.common import PROGRAM, add_command, named


def push(arguments: argparse.Namespace) -> None:
    """Publish a checkpoint on the Hub: weights, configuration, processor, code, model card and a picture."""
    from combo_hf.publishing import plan_publication, publish, resolve_repo_id

    _quiet_hub()
    # A dry run needs neither token nor network.
    repo_id = arguments.repo if arguments.dry_run else resolve_repo_id(arguments.repo)
    with named(arguments.folder):
        publication = plan_publication(
            arguments.folder,
            repo_id if "/" in repo_id else f"your-name/{repo_id}",
            results=arguments.results or (),
            license=arguments.license,
            preview=not arguments.no_preview,
            card_only=arguments.card_only,
        )
    _print_files(publication)
    if arguments.dry_run:
        print(f"dry run: nothing was sent to {publication.repo_id}")
        return
    published = publish(
        publication,
        private=arguments.private,
        message=arguments.message,
        report=lambda line: print(line, file=sys.stderr),
    )
    for name in published.removed:
        print(f"removed there: {name}, of an earlier publication")
    print(f"published: {published.url} at {published.commit[:12]}")


def _quiet_hub() -> None:
    """No bars in a log file."""
    if not sys.stderr.isatty():
        from huggingface_hub.utils import disable_progress_bars

        disable_progress_bars()


def _print_files(publication: Any) -> None:
    width = max(len(file.name) for file in publication.files)
    for file in publication.files:
        print(f"  {file.name:{width}}  {file.size:>14,} bytes  {file.why}")
    print(f"  {len(publication.files)} files, {publication.size:,} bytes")


def register(commands: Any) -> None:
    """Add the sub-command."""
    example = f"{PROGRAM} push runs/demo/best me/combo-demo --private --dry-run"
    command = add_command(commands, "push", push, "publish a checkpoint on the Hub", example)
    command.add_argument("folder", type=Path, help="checkpoint: a folder of save_pretrained with its processor")
    command.add_argument("repo", help="name or owner/name on the Hub; made where it does not exist")
    command.add_argument("--private", action="store_true", help="nobody else may see it")
    command.add_argument("--dry-run", action="store_true", help="show what would go, and send nothing")
    command.add_argument("--message", help="of the commit")
    command.add_argument("--card-only", action="store_true", help="only the model card and its picture")
    command.add_argument(
        "--results", type=Path, action="append", help="results.json of evaluate for these weights; may be repeated"
    )
    command.add_argument("--license", help="of the weights, as the Hub names it; default: from what made them")
    command.add_argument("--no-preview", action="store_true", help="no picture")
