"""A real OpenAI-compatible server (`transformers serve`) with a tiny model that was taught three
answers: strings of the command line, batches, the agent, and what a server says when it refuses.
"""

import json
import os
import socket
import subprocess
import sys
import time

import httpx
import numpy as np
import pytest
import torch
from PIL import Image
from speakers import box_json
from tiny_vlms import vlm

from reasonseg import InputError, Query, Segmenter
from reasonseg.backbones.speakers.endpoint import Config
from reasonseg.cli.main import main

pytest.importorskip("openai")
SIZE = (120, 184)
BOXES = {
    "the left square": (16.0, 24.0, 72.0, 88.0),
    "the right square": (104.0, 24.0, 160.0, 88.0),
}
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% for c in m['content'] %}"
    "{% if c['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% else %}{{ c['text'] }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
IMAGE = np.full((*SIZE, 3), 235, np.uint8)
IMAGE[24:88, 16:72] = (220, 30, 30)
IMAGE[24:88, 104:160] = (30, 30, 220)


@pytest.fixture(scope="module")
def taught(tmp_path_factory):
    """A folder of a Qwen3-VL that answers the three phrases. Its body is random; its head is solved
    for, so that each state of the three conversations gives the next token of its answer.
    """
    model, processor = vlm("qwen3_vl")
    processor.chat_template = CHATML
    config = model.config
    config.text_config.hidden_size = config.vision_config.out_hidden_size = 512
    config.text_config.initializer_range, config.tie_word_embeddings = 0.1, False
    torch.manual_seed(0)
    model = type(model)(config).eval()
    answers = {p: box_json(b, SIZE, "square") for p, b in BOXES.items()} | {"the cat": "[]"}
    speaker = Config("http://127.0.0.1:9/v1", "qwen3-vl-taught").build()
    picture = Image.fromarray(speaker.shape(IMAGE)[0])
    states, tokens = [], []
    for phrase, answer in answers.items():
        content = [{"type": "image", "image": picture},
                   {"type": "text", "text": speaker.family.request(phrase, True)}]  # fmt: skip
        asked = processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=True,
            return_dict=True, return_tensors="pt",
        )  # fmt: skip
        said = processor.tokenizer(answer, return_tensors="pt")["input_ids"]
        said = torch.cat([said, torch.tensor([[processor.tokenizer.eos_token_id]])], 1)
        asked["input_ids"] = torch.cat([asked["input_ids"], said], 1)
        for name, value in (("attention_mask", 1), ("mm_token_type_ids", 0)):
            if name in asked:
                asked[name] = torch.cat([asked[name], torch.full_like(said, value)], 1)
        with torch.no_grad():
            hidden = model.model(**asked).last_hidden_state[0]
        states.append(hidden[-said.shape[1] - 1 : -1])
        tokens.append(said[0])
    states, tokens = torch.cat(states).double(), torch.cat(tokens)
    wanted = torch.nn.functional.one_hot(tokens, model.lm_head.weight.shape[0]).double()
    solved = torch.linalg.lstsq(states, wanted[:, (used := tokens.unique())]).solution
    with torch.no_grad():
        model.lm_head.weight.zero_()
        model.lm_head.weight[used] = 20 * solved.T.float()
    assert ((states.float() @ model.lm_head.weight.T).argmax(-1) == tokens).all()
    model.generation_config.eos_token_id = processor.tokenizer.eos_token_id
    folder = tmp_path_factory.mktemp("served") / "qwen3-vl-taught"
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def server(taught):
    """The address of `transformers serve`."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    command = [sys.executable, "-c", "from transformers.cli.transformers import main; main()",
               "serve", str(taught), "--host", "127.0.0.1", "--port", str(port),
               "--device", "cpu"]  # fmt: skip
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    ) as process:
        try:
            for _ in range(600):
                if process.poll() is not None:
                    raise RuntimeError(process.stderr.read().decode()[-2000:])
                try:
                    if httpx.get(f"http://127.0.0.1:{port}/health").status_code == 200:
                        break
                except httpx.TransportError:
                    time.sleep(0.1)
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            process.kill()


def near(mask, box) -> bool:
    """Whether a mask lies mostly in a box."""
    x0, y0, x1, y1 = (int(v) for v in box)
    return mask[y0:y1, x0:x1].sum() > 0.7 * mask.sum() > 0


def test_boxes_that_a_real_server_says_are_drawn(server, taught):
    segmenter = Segmenter.from_pretrained(f"endpoint:{server}#{taught}+tiny")
    queries = [Query(IMAGE, phrase) for phrase in (*BOXES, "the cat")]
    answers = segmenter.batch(queries)
    for answer, box in zip(answers, BOXES.values(), strict=False):
        assert answer.status == "found" and near(answer.masks[0], box), answer.meta
        assert answer.meta["tokens"] > 50
    assert answers[2].status == "absent"


def test_ask_with_an_agent_on_a_real_server(server, taught, tmp_path, capsys):
    file = tmp_path / "two.png"
    Image.fromarray(IMAGE).save(file)
    model = f"agent:{server}#{taught}+tiny"
    main(["ask", str(file), "the left square", "--model", model, "--out", str(tmp_path / "out")])
    assert "square" in capsys.readouterr().out
    kept = json.loads((tmp_path / "out" / "answer.json").read_text())
    assert kept["status"] == "found"
    steps = [json.loads(s) for s in (tmp_path / "out" / "trace.jsonl").read_text().splitlines()]
    assert steps[0]["step"] == "propose places" and len(steps[0]["places"]) == 1
    assert "data:image" in (tmp_path / "out" / "trace.html").read_text()


def test_what_a_real_server_refuses_is_one_line(server):
    segmenter = Segmenter.from_pretrained(f"endpoint:{server}x#some/model+tiny")
    with pytest.raises(InputError, match="404") as error:
        segmenter(Query(IMAGE, "the left square"))
    assert "\n" not in str(error.value)
