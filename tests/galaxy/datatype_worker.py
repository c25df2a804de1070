"""Run by Galaxy's python: answers what Galaxy makes of a file or a folder. A line of JSON in, a line of JSON out."""

import json
import sys
from pathlib import Path

import galaxy.datatypes
import galaxy.model
from galaxy.datatypes import sniff
from galaxy.datatypes.registry import Registry


def load_registry(own: str) -> Registry:
    """The types of KBrain and of Galaxy, loaded as a server loads them."""
    registry = Registry()
    registry.load_datatypes(".", own)
    sample = Path(galaxy.datatypes.__file__).parents[1] / "config" / "sample" / "datatypes_conf.xml.sample"
    registry.load_datatypes(".", str(sample))
    return registry


def describe(extension: str, path: str) -> dict:
    """What a dataset is said to be after its job: metadata, blurb and peek (as text and as the page shows it)."""
    dataset = galaxy.model.Dataset(id=1, external_filename=path)
    if Path(path).is_dir():
        dataset.external_filename = path + ".dat"
        dataset.external_extra_files_path = path
        Path(dataset.external_filename).touch()
    shown = galaxy.model.HistoryDatasetAssociation(id=1, dataset=dataset, extension=extension)
    shown.datatype.set_meta(shown)
    shown.set_peek()
    metadata = json.loads(shown.metadata.to_JSON_dict())
    return {"metadata": metadata, "blurb": shown.blurb, "peek": shown.peek, "html": shown.display_peek()}


def main() -> None:
    registry = load_registry(sys.argv[1])
    galaxy.model.set_datatypes_registry(registry)
    for line in sys.stdin:
        request = json.loads(line)
        if request["extension"] == "auto":
            answer = sniff.guess_ext(request["path"], registry.sniff_order, auto_decompress=False)
        else:
            answer = describe(request["extension"], request["path"])
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
