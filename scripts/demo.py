"""Asks the embedded model about the packaged images, one per level, and writes its answers.

demo.py FOLDER
"""

import argparse
import json
from pathlib import Path

from reasonseg.runtime import quiet_libraries


def main() -> None:
    """Prints each question and answer; writes overlays, masks and one sheet."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    out = parser.parse_args().folder
    quiet_libraries()
    from reasonseg import Query, Segmenter
    from reasonseg.nn.pretrained import EMBEDDED
    from reasonseg.structures.contact_sheet import contact_sheet
    from reasonseg.structures.images import atomic_write

    pictures = EMBEDDED.parent / "pictures"
    questions = json.loads((pictures / "questions.json").read_text(encoding="utf-8"))
    segmenter = Segmenter.from_pretrained()
    print(segmenter.settings.notice, "\n")
    queries = [Query.open(pictures / q["file"], q["text"]) for q in questions]
    cells = []
    out.mkdir(parents=True, exist_ok=True)
    for question, answer in zip(questions, segmenter.batch(queries), strict=True):
        level = question["level"]
        answer.save(out / level)
        overlay = answer.overlay()
        with atomic_write(out / f"{level}-overlay.png") as aside:
            overlay.save(aside, format="PNG")
        cells.append((overlay, f"{level}: {question['text']}\n{answer.text} ({answer.status})"))
        scores = ", ".join(f"{s:.2f}" for s in answer.scores)
        print(
            f"{level:10} {question['text']}\n{'':10} {answer.text}  "
            f"[{answer.status}{': ' + scores if scores else ''}]"
        )
    with atomic_write(out / "sheet.png") as aside:
        contact_sheet(cells).save(aside, format="PNG")
    print(
        f"\nwrote {out}/sheet.png (all answers), {out}/LEVEL-overlay.png, and masks with "
        f"answer.json in {out}/LEVEL"
    )


if __name__ == "__main__":
    main()
