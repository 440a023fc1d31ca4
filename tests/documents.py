"""The blocks of the documentation: what stands in them, and why a block is not run."""

import re
from dataclasses import dataclass
from pathlib import Path

from running import ROOT

PAGES = [
    *(ROOT / name for name in ('README.md', 'CONTRIBUTING.md', 'CHANGELOG.md', 'benchmarks/README.md')),
    *sorted((ROOT / 'docs').rglob('*.md')),
]
_REASON = re.compile(r'<!-- not run: (\S.*) -->')


@dataclass(frozen=True)
class Block:
    """A fenced block, or one of indented lines, which is of the shell.

    Args:
        page: path from the repository's root.
        line: of its first line.
        language: as the fence says it.
        text: without fence and indentation.
        reason: why it is not run; empty if it is.
    """

    page: str
    line: int
    language: str
    text: str
    reason: str


def blocks_of(path: Path) -> list[Block]:
    """All blocks of a page, in their order."""
    page, blocks, reason, previous = path.relative_to(ROOT).as_posix(), [], '', ''
    lines = iter(enumerate(path.read_text(encoding='utf-8').splitlines(), start=1))
    for number, line in lines:
        if line.startswith('```'):
            inside = []
            for _, each in lines:
                if each == '```':
                    break
                inside.append(each)
            blocks.append(Block(page, number, line[3:].strip(), '\n'.join(inside), reason))
            reason = ''
        elif line.startswith('    ') and not previous.strip():
            inside = [line]
            for _, each in lines:
                if not each.startswith('    '):
                    break
                inside.append(each)
            blocks.append(Block(page, number, 'sh', '\n'.join(each[4:] for each in inside), reason))
            reason = ''
        elif line.strip():
            found = _REASON.fullmatch(line)
            reason = found[1] if found else ''
        previous = line
    return blocks


BLOCKS = [block for path in PAGES for block in blocks_of(path)]
