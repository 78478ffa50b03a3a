"""Names of files that programs keep beside those that people work on: locks, copies, halves of downloads, views.

They are left out of folders and buckets (`sources.files`) and of archives (`documents.formats.members`).
"""

import fnmatch
import re

#: Patterns of a file's own name, without regard to capital letters.
TEMPORARY_FILES = (
    *("~$*", ".~lock.*#", ".#*", "#*#", "*~", "*.swp", "*.tmp"),
    *("*.crdownload", "*.download", "*.part", "*.partial"),
    *("thumbs.db", "desktop.ini", ".ds_store", "._*"),
)
_TEMPORARY = re.compile("|".join(map(fnmatch.translate, TEMPORARY_FILES)), re.IGNORECASE)


def is_temporary(name: str) -> bool:
    """Return whether a file of this name, or what a pattern of such a name takes, is one of `TEMPORARY_FILES`."""
    return _TEMPORARY.match(name) is not None
