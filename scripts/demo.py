"""Asks the packaged models about packaged images, photographs first, and writes their answers.

demo.py FOLDER
"""

import argparse
import json
from pathlib import Path

from reasonseg.runtime import quiet_libraries


def main() -> None:
    """Prints each question and answer; writes overlays, masks and one sheet a set of images."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    out = parser.parse_args().folder
    quiet_libraries()
    from reasonseg import Segmenter
    from reasonseg.checkpoints.folder import default_model
    from reasonseg.nn.pretrained import EMBEDDED

    assets = EMBEDDED.parent
    name, remark = default_model()
    if name == "photo":
        found = json.loads((assets / "photos" / "questions.json").read_text(encoding="utf-8"))
        ask(Segmenter.from_pretrained(name), assets / "photos", found["questions"], out / "photos")
    elif remark:
        print(remark, "\n")
    found = json.loads((assets / "pictures" / "questions.json").read_text(encoding="utf-8"))
    ask(Segmenter.from_pretrained("tiny"), assets / "pictures", found, out / "scenes")


def ask(segmenter, pictures: Path, questions: list[dict], out: Path) -> None:
    """Asks about the images of one folder; prints the answers and writes them to `out`."""
    from reasonseg import Query
    from reasonseg.structures.contact_sheet import contact_sheet
    from reasonseg.structures.images import atomic_write

    print(f"model {segmenter.settings.about['name']}: {segmenter.settings.notice}\n")
    queries = [Query.open(pictures / q["file"], q["text"]) for q in questions]
    cells = []
    out.mkdir(parents=True, exist_ok=True)
    for k, (question, answer) in enumerate(
        zip(questions, segmenter.batch(queries), strict=True), 1
    ):
        level = question["level"]
        answer.save(out / f"{k}-{level}")
        cells.append((answer.overlay(), f"{level}: {question['text']}\n{answer.text}"))
        scores = ", ".join(f"{s:.2f}" for s in answer.scores)
        print(
            f"{level:10} {question['text']}\n{'':10} {answer.text}  "
            f"[{answer.status}{': ' + scores if scores else ''}]"
        )
    with atomic_write(out / "sheet.png") as aside:
        contact_sheet(cells).save(aside, format="PNG")
    print(
        f"\nwrote {out}/sheet.png (all answers), and masks with answer.json in {out}/NUMBER-LEVEL\n"
    )


if __name__ == "__main__":
    main()
