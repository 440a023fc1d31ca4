"""What went wrong between us and the Hub, in one line that says what to do; and trying again where that may help."""

import errno
import logging
import re
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from timm_hnc.errors import first_lines

T = TypeVar('T')
WAITS = (1.0, 3.0, 9.0)  # seconds between attempts; the client itself tries some requests more often
_AGAIN = {408, 409, 412, 429, 500, 502, 503, 504}  # 409 and 412: somebody else committed meanwhile
# of whatever HTTP library the client has: it is not ours to import
_CUT = ('ConnectError', 'ReadError', 'WriteError', 'CloseError', 'ProtocolError', 'Timeout', 'ConnectionError')
_TOKEN = re.compile(r'hf_\w+|Bearer \S+')
_logger = logging.getLogger(__name__)


def explain(error: BaseException, name: str, writing: bool = False) -> str:
    """One line on an error of the Hub's client for that repository, without tokens and addresses of requests."""
    chain = list(_chain(error))
    status = _status(chain)
    if _has(chain, HFValidationError):
        return f"'{name}' is no name for a repository of the Hub: expected user/name of letters, digits, '-', '_', '.'."
    if _has(chain, GatedRepoError):
        return f"'{name}' is gated: ask for access on its page, and log in (hf auth login, or HF_TOKEN)."
    if _has(chain, RevisionNotFoundError):
        return f"'{name}' has no such revision (branch, tag or commit)."
    if status == 401 and not _has(chain, RepositoryNotFoundError):
        return f"the Hub does not know the token (401) that was sent for '{name}': hf auth login, or see HF_TOKEN."
    if status == 403 and writing:
        return f"the token has no right to write to '{name}' (403): check the namespace, and that the token may write."
    if _has(chain, RepositoryNotFoundError):
        return f"repository '{name}' does not exist, or is private and not yours: log in (hf auth login, or HF_TOKEN)."
    if _is_full(chain):
        return f"no space left on disk for '{name}': see HF_HOME for where the cache lies."
    if _has(chain, OfflineModeIsEnabled):
        return f"'{name}' is not in the cache, and HF_HUB_OFFLINE is set."
    if status == 404 and not writing and _has(chain, EntryNotFoundError):
        return f"'{name}' is no repository of a timm model: it lacks a file that all of them have."
    if status:
        said = next((text for each in chain if (text := getattr(each, 'server_message', None))), '')
        return f"the Hub failed for '{name}' (status {status}{': ' if said else ''}{without_tokens(said.strip('. '))})."
    if any(type(each).__name__ in ('UnsupportedProtocol', 'InvalidURL', 'MissingSchema') for each in chain):
        return f"the Hub cannot be reached for '{name}': HF_ENDPOINT is no address that begins with https://."
    if _has(chain, UnicodeEncodeError):
        return f"the token for '{name}' has characters that no token has: hf auth login, or see HF_TOKEN."
    if _is_cut(chain) or _has(chain, LocalEntryNotFoundError):
        return (
            f"the Hub cannot be reached for '{name}' ({type(chain[-1]).__name__}): check the network and HF_ENDPOINT."
        )
    return without_tokens(first_lines(error))  # type: ignore[arg-type]


def is_of_the_hub(error: BaseException) -> bool:
    """Whether an error comes from the Hub or the way there, rather than from what was found there."""
    chain = list(_chain(error))
    kinds = (HFValidationError, RepositoryNotFoundError, RevisionNotFoundError, LocalEntryNotFoundError)
    return _is_full(chain) or bool(_status(chain)) or _is_cut(chain) or _has(chain, *kinds)


def may_pass(error: BaseException) -> bool:
    """Whether the same request may succeed a little later."""
    chain = list(_chain(error))
    return _status(chain) in _AGAIN or (not _status(chain) and _is_cut(chain))


def try_again(work: Callable[[], T], name: str) -> T:
    """Do something with the Hub that can be done twice, again after a while where the error may pass."""
    for wait in WAITS:
        try:
            return work()
        except Exception as error:
            if not may_pass(error):
                raise
            _logger.warning(f'{explain(error, name, writing=True)} Trying again in {wait:g} s.')
            time.sleep(wait)
    return work()


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def _status(chain: list[BaseException]) -> int | None:
    found = (getattr(getattr(each, 'response', None), 'status_code', None) for each in chain)
    return next((status for status in found if status), None)


def _has(chain: list[BaseException], *kinds: type[BaseException]) -> bool:
    return any(isinstance(each, kinds) for each in chain)


def _is_cut(chain: list[BaseException]) -> bool:
    return any(base.__name__.endswith(_CUT) for each in chain for base in type(each).__mro__)


def _is_full(chain: list[BaseException]) -> bool:
    numbers = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    return any(isinstance(each, OSError) and each.errno in numbers for each in chain)


def without_tokens(text: str) -> str:
    """The text with anything that looks like a token of the Hub taken out."""
    return _TOKEN.sub('***', text)
