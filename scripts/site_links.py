"""A hook of mkdocs: files outside docs/ that pages link to are part of the site.

On a forge `../recipes/dpo/tiny.yaml` leads from a page to the file. The site has a copy of each
such file, at its place below the project's root, and links are rewritten to it. What a link names
and nobody has stays as it is written, so that `mkdocs build --strict` fails.
"""

import os
import re
from collections.abc import Iterator
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

# Code is matched first, so that what looks like a link in it stays.
_CODE_OR_LINK = re.compile(r"^ *```.*?^ *```|`[^`\n]*`|(?<=\]\()[^)\s#]+", re.M | re.S)
_PLAIN_URL = re.compile(r"[a-z]+:")
_ROOT_PAGES = ("CONTRIBUTING.md", "CHANGELOG.md")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the root's pages, and every file outside docs/ that a page links to."""
    docs = Path(config.docs_dir)
    root = docs.parent
    pages = [Path(file.abs_src_path) for file in files.documentation_pages()]
    pages += [path for name in _ROOT_PAGES if (path := root / name).exists()]
    linked = {path for page in pages for path in _linked(page) if root in path.parents}
    for path in sorted(linked.union(pages)):
        if path.is_file() and docs not in path.parents:
            place = path.relative_to(root).as_posix()
            files.append(File.generated(config, place, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Rewrite links between docs/ and the rest of the project to places of the site."""
    docs = Path(config.docs_dir)
    here = Path(page.file.abs_src_path).parent
    start = os.path.dirname(page.file.src_uri)

    def rewritten(found: re.Match[str]) -> str:
        target = _target(found[0], here)
        for base in (docs, docs.parent):
            if target and base in target.parents:
                place = target.relative_to(base).as_posix()
                return os.path.relpath(place, start) if place in files.src_uris else found[0]
        return found[0]

    return _CODE_OR_LINK.sub(rewritten, markdown)


def _linked(page: Path) -> Iterator[Path]:
    """What a page's relative links name, whether it is there or not."""
    for found in _CODE_OR_LINK.findall(page.read_text(encoding="utf-8")):
        target = _target(found, page.parent)
        if target:
            yield target


def _target(link: str, here: Path) -> Path | None:
    """Where a relative link leads from a folder; None for code and for links elsewhere."""
    if link.lstrip(" ").startswith("`") or _PLAIN_URL.match(link):
        return None
    return Path(os.path.normpath(here / link))
