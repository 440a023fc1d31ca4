"""Records of a run that tell of nobody's machine: of paths only the last part stays."""

import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from timm_hnc.files.run_options import OF_THE_HUB

# a path, behind what may stand in front of one: --option=, name=, the scheme of a model or data set
_PATH = re.compile(
    r'(?P<head>(?:-[A-Za-z](?=[/~.]))?(?:[\w.-]+=|local-dir:|hfi?ds/)*)'
    r'(?P<path>(?:file://|/|~|\.\.?[/\\]|[A-Za-z]:[\\/]|\\\\).*|.*[/\\]\.\.[/\\].*|\.\.)',
    re.DOTALL,
)
# the folders of a path in a list or in JSON
_INSIDE = re.compile(r"""([,"']\s*)(?:file://|/|~|\.\.?[/\\]|[A-Za-z]:[\\/])(?:[^,"']*[/\\])?(?=[^,"'/\\])""")


def _without_folder(word: str) -> str:
    match = _PATH.fullmatch(word)
    if not match:
        return _INSIDE.sub(r'\1', word)
    head, last = match['head'], re.split(r'[/\\]', match['path'].rstrip('/\\'))[-1]
    # a second slash says that the data set is a folder, and none of the Hub's
    return f'{head}/{last}' if head.endswith(('hfds/', 'hfids/')) else f'{head}{last}'


def portable(content: Any) -> Any:
    """Options, results or the words of a command line: of paths that lead elsewhere only the last part stays."""
    if isinstance(content, str):
        return _without_folder(content)
    if isinstance(content, Mapping):
        return {name: portable(value) for name, value in content.items()}
    return [portable(each) for each in content] if isinstance(content, (list, tuple)) else content


def portable_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options for args.yaml: whoever trains with them publishes nothing by that."""
    return {name: portable(value) for name, value in options.items() if name not in OF_THE_HUB}


def portable_result(result: Mapping[str, Any]) -> dict[str, Any]:
    """A result for result.json, its command line cut word by word."""
    command = {'command': shlex.join(portable(shlex.split(result['command'])))} if result.get('command') else {}
    return {**portable(result), **command}


def data_name(options: Mapping[str, Any]) -> str:
    """What the data is called: a data set's name without its reader, or the last part of a folder."""
    name = str(options.get('dataset') or options.get('data_dir') or options.get('data') or '')
    if is_hub_name(name):
        return name.partition('/')[2]
    return re.split(r'[/\\]', name.rstrip('/\\'))[-1]


def is_hub_name(dataset: Any) -> bool:
    """Whether a data set's name is one of the Hub's, and no folder."""
    scheme, _, rest = str(dataset or '').partition('/')
    is_name = not rest.startswith(('.', '/', '~')) and rest.count('/') <= 1
    # a folder goes before the Hub's data set of that name, as in the library that opens them
    return scheme in ('hfds', 'hfids') and is_name and not Path(rest).is_dir()
