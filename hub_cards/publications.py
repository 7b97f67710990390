"""A publication from its plan to the Hub: what would be uploaded, shown first where that is asked for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from modeling_tsarank.files.sizes import readable_size
from modeling_tsarank.hub_cards.file_selection import Selection
from modeling_tsarank.hub_cards.secret_scan import refuse_secrets
from modeling_tsarank.hub_cards.uploading import Published, Target, check_repo_id, upload
from modeling_tsarank.ranking_errors import InputError


CARD_NAME = "README.md"
DEFAULT_TAG = "v1"
UNKNOWN_LICENSE = "unknown"


@dataclass
class Publication:
    """Something that is ready to be published.

    Attributes:
        selection: the files, card included.
        target: where they go.
        stale: which other files of the repository the commit takes out.
        not_secret: paths whose look-alikes of secrets the user has looked at.
        refusals: why this cannot be published, where a preview was made all the same.
    """

    selection: Selection
    target: Target
    stale: Callable[[str], bool] = field(default=lambda _: False)
    not_secret: Sequence[str] = ()
    refusals: Sequence[str] = ()

    @property
    def card(self) -> str:
        """The text of the card."""
        return next(file for file in self.selection.files if file.path == CARD_NAME).read().decode("utf-8")

    def check(self) -> None:
        """Raises `InputError` for whatever keeps this from being published: `refusals`, and `check_files`."""
        self.check_files()
        if self.refusals:
            raise InputError(self.refusals[0])

    def check_files(self) -> None:
        """Raises `InputError` for a name the Hub would not take, and for files that hold what looks like a secret."""
        check_repo_id(self.target.repo_id)
        refuse_secrets(self.selection.files, self.not_secret)

    def carry_out(self) -> Published:
        """Checks and uploads, see `uploading.upload`."""
        self.check()
        return upload(self.selection.files, self.target, self.stale)

    def describe(self) -> str:
        """Files with their sizes, what is left out and why, and the card: what `--dry-run` prints."""
        target = self.target
        visibility = "public" if target.private is False else "private"
        tag = f", tag {target.tag}" if target.tag else ""
        lines = [f"{target.repo_type} {target.repo_id} ({visibility}, one commit{tag})", ""]
        width = max(len(readable_size(file.size)) for file in self.selection.files)
        lines += [f"  {readable_size(file.size):>{width}}  {file.path}" for file in self.selection.files]
        lines.append(f"  {readable_size(self.selection.size):>{width}}  in {len(self.selection.files)} files")
        if self.selection.left_out:
            lines += ["", "left out:"]
            lines += [f"  {path}  ({why})" for path, why in self.selection.left_out]
        if self.refusals:
            lines += ["", "the real run will refuse this:"]
            lines += [f"  {reason}" for reason in self.refusals]
        return "\n".join([*lines, "", f"{CARD_NAME}:", "", self.card])
