"""The site of docs/ has what pages link to outside of docs/, and a link to nothing fails."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def built(project: Path, pages: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """A build of a project with these files, by the hook and the checks of ours."""
    (project / "scripts").mkdir()
    shutil.copy(ROOT / "scripts" / "site_links.py", project / "scripts")
    settings = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    settings = settings[: settings.index("\nnav:")]
    (project / "mkdocs.yml").write_text(settings, encoding="utf-8")
    for name, text in {"docs/site.css": "", **pages}.items():
        path = project / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict"],
        cwd=project,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


def test_files_outside_docs_are_part_of_the_site_and_links_lead_to_them(tmp_path: Path):
    done = built(
        tmp_path,
        {
            "docs/index.md": "[r](../recipes/r.yaml), [c](../CONTRIBUTING.md#how), `[x](../no)`",
            "docs/deep/page.md": "[r](../../recipes/r.yaml) and [i](../index.md)",
            "CONTRIBUTING.md": "# Contributing\n\n## How\n\n[i](docs/index.md)",
            "recipes/r.yaml": "objective: {name: dpo}",
            "recipes/other.yaml": "",
        },
    )

    assert done.returncode == 0, done.stderr
    site = tmp_path / "site"
    assert (site / "recipes" / "r.yaml").read_text() == "objective: {name: dpo}"
    assert not (site / "recipes" / "other.yaml").exists()
    index = (site / "index.html").read_text()
    assert 'href="recipes/r.yaml"' in index
    assert 'href="CONTRIBUTING/#how"' in index
    assert "[x](../no)" in index
    assert 'href="../../recipes/r.yaml"' in (site / "deep" / "page" / "index.html").read_text()
    assert 'href=".."' in (site / "CONTRIBUTING" / "index.html").read_text()


def test_a_link_to_a_page_a_file_or_a_heading_that_is_not_there_fails(tmp_path: Path):
    for number, link in enumerate(["none.md", "../recipes/none.yaml", "../recipes", "#none"]):
        project = tmp_path / str(number)
        project.mkdir()

        done = built(project, {"docs/index.md": f"# Index\n\n[x]({link})", "recipes/r.yaml": ""})

        assert done.returncode != 0
        assert f"'{link}'" in done.stderr


def test_nothing_is_fetched_when_a_page_is_read(tmp_path: Path):
    built(tmp_path, {"docs/index.md": "# Index\n\n```python\nprint(1)\n```"})

    page = (tmp_path / "site" / "index.html").read_text()
    loaded = [part.split('"')[0] for part in page.replace('href="', 'src="').split('src="')[1:]]
    assert "assets/stylesheets" in page
    assert [each for each in loaded if "//" in each] == []
