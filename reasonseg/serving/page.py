"""The web page: upload an image, ask, view coloured masks, correct by clicks, add reference images.

It uses the same engine as the HTTP API.
"""

from __future__ import annotations

import atexit
import json
import os
import queue
import shutil
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
from fastapi import FastAPI
from gradio.utils import get_upload_folder
from PIL import Image

from reasonseg.errors import InputError
from reasonseg.serving.conversations import Conversations
from reasonseg.serving.engine import Busy, Engine, Late
from reasonseg.serving.limits import Budget
from reasonseg.serving.page_guard import PageGuard
from reasonseg.serving.requests import Pictures
from reasonseg.serving.session import Session
from reasonseg.structures.answer import Answer
from reasonseg.structures.images import MAX_PIXELS
from reasonseg.structures.overlay import draw_overlay, enlargement
from reasonseg.structures.query import Reference

ASSETS = Path(__file__).parents[1] / "assets"
NOTHING: list[str] = []
KEPT, AGE = 512, 3600.0  # folders with files to download: how many are kept, and for how long
SWEEP = 600  # seconds between two searches for uploads that are older than `AGE`


def private_folder(purpose: str) -> Path:
    """A new folder that only this user can read, removed when the process ends."""
    folder = Path(tempfile.mkdtemp(prefix=f"reasonseg-{purpose}-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


class Page:
    """The functions that the widgets call. A browser only holds the id of its conversation."""

    def __init__(self, engine: Engine, conversations: Conversations, budget: Budget):
        self.engine, self.conversations, self.budget = engine, conversations, budget
        self.seconds, self.pixels = budget.limits.seconds, budget.limits.pixels
        self.files = private_folder("page")

    @contextmanager
    def session(self, name: str | None) -> Iterator[Session]:
        """The session of a conversation, for one turn at a time.

        Raises `gr.Error` where there is none, or for a mistake of the user in the block.
        """
        found = self.conversations.find(name) if name else None
        if found is None:
            raise gr.Error(
                "Give an image first (a conversation is deleted after an hour).",
                print_exception=False,
            )
        with found.turn, told():
            yield found.session

    def start(self, file: str | None, name: str | None):
        """Starts a conversation about an image, or changes the image of the conversation."""
        if file is None:
            return name, None, gr.update(choices=NOTHING, value=NOTHING), []
        with told(), self.budget.share() as share:
            until = time.monotonic() + self.seconds
            image = Pictures(share, until).image(Path(file).read_bytes(), "the image")
        found = self.conversations.find(name) if name else None
        if found is None:
            name = self.conversations.open(Session(self.engine.segmenter, image))
        else:
            found.session.look(image)
        return name, plain(image), gr.update(choices=NOTHING, value=NOTHING), []

    def ask(self, text: str, name: str | None, chat: list[dict]) -> Iterator[tuple]:
        """Asks the next question; yields the text so far, then the masks."""
        with self.session(name) as session:
            yield from self._turn(session, text, chat)

    def _turn(self, session: Session, text: str, chat: list[dict]) -> Iterator[tuple]:
        said: queue.Queue[str | None] = queue.Queue()
        query = session.query(text)
        job = self.engine.submit(query, timeout=self.seconds, on_text=said.put)
        job.answer.add_done_callback(lambda _: said.put(None))
        chat = [
            *chat,
            {"role": "user", "content": text or "(like the references)"},
            {"role": "assistant", "content": "..."},
        ]
        while (grown := said.get()) is not None:
            chat[-1] = {"role": "assistant", "content": grown}
            yield chat, "", gr.skip(), gr.skip(), gr.skip(), gr.skip()
        answer = session.keep(query, job.answer.result())
        chat[-1] = {"role": "assistant", "content": spoken(answer)}
        yield chat, "", *self.shown(answer)

    def correct(
        self,
        spot: gr.SelectData,
        belongs: str,
        layers: list[str],
        name: str | None,
        chat: list[dict],
    ):
        """Corrects the first visible mask by a click on the image.

        Where the last answer has no mask, the click is a new question.
        """
        on = int(belongs == BELONGS)
        with self.session(name) as session:
            last = self.latest(session)
            x, y = (float(v) / enlargement(_image_of(session)) for v in spot.index)
            if last is None or not len(last.masks):
                query = session.query(points=[(x, y, on)])
                answer = session.keep(
                    query, self.engine.submit(query, timeout=self.seconds).answer.result()
                )
            else:
                names = names_of(last)
                mask = next((k for k, layer in enumerate(names) if layer in layers), 0)
                query, clicks = session.correction([(x, y, on)], mask=mask)
                drawn = self.engine.submit(query, timeout=self.seconds).answer.result()
                answer = session.corrected(query, clicks, mask, drawn)
        note = f"(a click at {x:.0f}, {y:.0f}: {belongs})"
        chat = [
            *chat,
            {"role": "user", "content": note},
            {"role": "assistant", "content": spoken(answer)},
        ]
        return chat, *self.shown(answer)

    def latest(self, session: Session) -> Answer | None:
        """The last answer, if it is about the current image."""
        about = session.turns and session.turns[-1].query.image is session.image
        return session.turns[-1].answer if about else None

    def shown(self, answer: Answer) -> tuple[Any, Any, str, str]:
        """(image, layers, PNG file, COCO file) of an answer."""
        names = names_of(answer)
        self._sweep()
        folder = Path(tempfile.mkdtemp(dir=self.files))
        answer.overlay().save(folder / "overlay.png")
        (folder / "annotations.json").write_text(
            json.dumps(answer.to_coco(file_name="image.png")), encoding="utf-8"
        )
        files = str(folder / "overlay.png"), str(folder / "annotations.json")
        return np.asarray(drawn_on(answer, names)), gr.update(choices=names, value=names), *files

    def _sweep(self) -> None:
        """Removes the files to download that are older than `AGE`, or more than `KEPT`."""
        made = sorted((folder.stat().st_mtime, folder) for folder in self.files.iterdir())
        oldest = time.time() - AGE
        for k, (then, folder) in enumerate(made):
            if then < oldest or k < len(made) - KEPT:
                shutil.rmtree(folder, ignore_errors=True)

    def switch(self, layers: list[str], name: str | None):
        """The image with the masks of the selected layers."""
        with self.session(name) as session:
            last = self.latest(session)
            return gr.skip() if last is None else np.asarray(drawn_on(last, layers))

    def undo(self, name: str | None, chat: list[dict]):
        """Removes the last turn."""
        with self.session(name) as session:
            if session.undo() is None:
                return chat, gr.skip(), gr.skip(), gr.skip(), gr.skip()
            if (last := self.latest(session)) is None:
                return (
                    chat[:-2],
                    plain(_image_of(session)),
                    gr.update(choices=NOTHING, value=NOTHING),
                    None,
                    None,
                )
            return chat[:-2], *self.shown(last)

    def example(self, drawing: dict | None, label: str, name: str | None):
        """Adds a reference image, on which the object was painted."""
        with self.session(name) as session:
            session.show(brushed(drawing, label, self.pixels))
            return f"Every question uses {len(session.references)} reference images.", None, ""

    def forget(self, name: str | None) -> str:
        """Removes all reference images."""
        with self.session(name) as session:
            session.references.clear()
        return "No reference images."


class told:  # noqa: N801  used as `with told():`
    """Shows mistakes of the user, and a busy server, as a message on the page."""

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace) -> bool:
        if isinstance(error, InputError | Busy | Late):
            raise gr.Error(str(error), print_exception=False) from None
        return False


BELONGS, FOREIGN = "belongs to it", "does not belong to it"


def spoken(answer: Answer) -> str:
    """The text of an answer in the conversation."""
    if answer.status == "absent":
        return f"{answer.text} (not in this image)"
    return answer.text or f"{len(answer.masks)} mask{'s' * (len(answer.masks) != 1)}"


def names_of(answer: Answer) -> list[str]:
    """Names of the layers: number, label and score of each mask."""
    pairs = zip(answer.labels, answer.scores, strict=True)
    return [f"{k}. {label or 'mask'} ({score:.2f})" for k, (label, score) in enumerate(pairs, 1)]


def drawn_on(answer: Answer, layers: list[str]):
    """The image with the masks of the selected layers, each in its own colour."""
    if answer.image is None:
        raise InputError("this answer does not carry its image")
    on = [k for k, name in enumerate(names_of(answer)) if name in layers]
    return draw_overlay(
        answer.image, answer.masks[on], [answer.labels[k] for k in on], answer.scores[on], on
    )


def _image_of(session: Session) -> np.ndarray:
    """The image of a session. Raises `InputError` where none is given yet."""
    if session.image is None:
        raise InputError("there is no image yet; give one first")
    return session.image


def plain(image: np.ndarray) -> np.ndarray:
    """An image without masks, enlarged as one with masks is."""
    return np.asarray(draw_overlay(image, np.zeros((0, *image.shape[:2]), bool), [], []))


def brushed(drawing: dict | None, label: str, pixels: int = MAX_PIXELS) -> Reference:
    """A reference from an image editor: its background image, and the painted pixels as mask.

    Raises `InputError` where there is no image, nothing is painted, or the image has more than
    `pixels` pixels.
    """
    if not drawing or drawing.get("background") is None:
        raise InputError("give a picture to brush on")
    image = np.asarray(drawing["background"])[..., :3].astype(np.uint8)
    if image.shape[0] * image.shape[1] > pixels:
        raise InputError(
            f"the image has more than the {pixels / 1e6:g} million pixels read; make it smaller"
        )
    mask = np.zeros(image.shape[:2], bool)
    for layer in drawing.get("layers") or []:
        mask |= np.asarray(layer)[..., -1] > 0
    if not mask.any():
        raise InputError("nothing is brushed; paint over the object")
    return Reference(
        np.ascontiguousarray(image), mask=mask, label=label.strip() or None, name="brushed"
    )


class Widgets:
    """The widgets of the page in two columns; made inside `gr.Blocks`."""

    def __init__(self, notice: str):
        self.name = gr.State(None)
        gr.Markdown("## reasonseg\nWords, examples, or both into image masks.")
        if notice:
            gr.Markdown(f"*{notice}*")
        with gr.Row():
            with gr.Column(min_width=320):
                self._picture()
            with gr.Column(min_width=320):
                self._answer()
        self.shown = [self.result, self.layers, self.png, self.coco]

    def _picture(self) -> None:
        """The image to ask about, and the reference images."""
        self.image = gr.Image(
            label="Image",
            type="filepath",
            sources=["upload", "clipboard"],
            elem_id="picture",
            height=320,
        )
        files = [*sorted(ASSETS.glob("photos/*.jpg")), *sorted(ASSETS.glob("pictures/*.png"))]
        pictures = [[str(file)] for file in files]
        gr.Examples(pictures, [self.image], label="Or one of these")
        with gr.Accordion("Add a reference image", open=False):
            self.editor = gr.ImageEditor(
                label="Brush over the object", type="numpy", elem_id="editor", height=320
            )
            self.label = gr.Textbox(label="Its label (optional)", elem_id="label")
            self.add = gr.Button("Add the reference", elem_id="add")
            self.forget = gr.Button("Remove all references")
            self.examples = gr.Markdown("No reference images.")

    def _answer(self) -> None:
        """The masks, the question, and the conversation."""
        self.result = gr.Image(
            label="Click to correct",
            type="numpy",
            interactive=False,
            elem_id="result",
            format="png",
        )
        self.text = gr.Textbox(
            label="Ask", placeholder="what keeps you dry in the rain", elem_id="ask"
        )
        with gr.Row():
            self.send = gr.Button("Ask", variant="primary", elem_id="send", min_width=100)
            self.undo = gr.Button("Undo", elem_id="undo", min_width=100)
        self.layers = gr.CheckboxGroup(label="Layers", choices=NOTHING, elem_id="layers")
        self.belongs = gr.Radio(
            [BELONGS, FOREIGN], value=BELONGS, label="What I click on ...", elem_id="belongs"
        )
        self.chat = gr.Chatbot(label="Conversation", height=260, elem_id="chat")
        with gr.Row():
            self.png = gr.DownloadButton("PNG", elem_id="png", min_width=100)
            self.coco = gr.DownloadButton("COCO", elem_id="coco", min_width=100)


def make_page(engine: Engine, conversations: Conversations, budget: Budget) -> gr.Blocks:
    """The page with its widgets and their events.

    Files made for a browser are removed after an hour.
    """
    page = Page(engine, conversations, budget)
    with gr.Blocks(
        title="reasonseg", analytics_enabled=False, delete_cache=(SWEEP, int(AGE))
    ) as blocks:
        w = Widgets(engine.segmenter.settings.notice)
        name, chat, shown = w.name, w.chat, w.shown
        quiet: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
        w.image.change(page.start, [w.image, name], [name, w.result, w.layers, chat], **quiet)
        for event in (w.send.click, w.text.submit):
            event(page.ask, [w.text, name, chat], [chat, w.text, *shown], **quiet)
        w.result.select(page.correct, [w.belongs, w.layers, name, chat], [chat, *shown], **quiet)
        w.layers.input(page.switch, [w.layers, name], [w.result], **quiet)
        w.undo.click(page.undo, [name, chat], [chat, *shown], **quiet)
        w.add.click(
            page.example, [w.editor, w.label, name], [w.examples, w.editor, w.label], **quiet
        )
        w.forget.click(page.forget, [name], [w.examples], **quiet)
    return blocks


def mount(app: FastAPI, token: str | None = None, root_path: str = "") -> FastAPI:
    """The app with the page at `/`.

    With a token, the page asks for it as the password of the user `reasonseg`. `root_path` is the
    path under which a proxy shows the page. No image with more pixels than the limit is decoded in
    this process from now on, by gradio either.
    """
    state = app.state
    limits = state.budget.limits
    os.environ.setdefault("GRADIO_TEMP_DIR", str(private_folder("uploads")))
    # gradio decodes what a browser sends; Pillow refuses an image with more than twice this number
    Image.MAX_IMAGE_PIXELS = limits.pixels // 2
    warnings.simplefilter("ignore", Image.DecompressionBombWarning)
    blocks = make_page(state.engine, state.conversations, state.budget)
    blocks.queue(max_size=64, default_concurrency_limit=16)
    auth = ("reasonseg", token) if token else None
    # gradio checks the paths of events only where the page was launched, not where it is mounted
    blocks.has_launched = True
    editor = next(b for b in blocks.blocks.values() if isinstance(b, gr.ImageEditor))
    # a budget of its own: who has no token cannot block the API
    own = Budget(limits)
    app.add_middleware(PageGuard, uploads=get_upload_folder(), budget=own, editor=editor)
    return gr.mount_gradio_app(
        app,
        blocks,
        path="/",
        auth=auth,
        root_path=root_path or None,
        max_file_size=limits.body,
        allowed_paths=[],
        footer_links=[],
        show_error=False,  # of mistakes of the user the message is shown all the same
    )
