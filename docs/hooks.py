"""What mkdocs calls while it builds: the pages that are written from the code join the others."""

from typing import Any

from mkdocs.structure.files import File, Files

from amd_lightning.reference import pages


def on_files(files: Files, config: Any) -> Files:
    """Add a generated page for each of `reference.pages`."""
    for path, write in pages().items():
        files.append(File.generated(config, path, content=write()))
    return files
