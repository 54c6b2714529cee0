"""The command `probe`: what a model's numbers are measured in."""

from __future__ import annotations

from reasonseg.cli.options import Command, Parser


def _arguments(parser: Parser) -> None:
    parser.add_argument(
        "model", metavar="MODEL|URL", help="a hub id or folder, or http://HOST:PORT/v1#NAME"
    )
    parser.add_argument("--device", help="cpu, cuda ... (default: cuda if there is a GPU)")


def _run(options) -> None:
    from reasonseg.runtime import quiet_libraries

    quiet_libraries()
    from reasonseg.backbones.speakers.probing import SQUARES, keep, probe
    from reasonseg.segmenters.spoken import settings_from, speaker_of

    settings = settings_from(f"speaker:{options.model}+")
    speaker = speaker_of(settings.speaker, options.device)
    found = probe(speaker)
    file = keep(speaker.name, found)
    print(
        f"{speaker.name}: frame {found.frame}, order {found.order} (IoU {found.iou:.2f} with "
        f"{found.answered} of {len(SQUARES)} squares)"
    )
    known = speaker.family.frame
    if known and (known, speaker.family.order) != (found.frame, found.order):
        print(
            f"its family ({speaker.family.name}) is known to speak {known} {speaker.family.order}; "
            "that is used unless a YAML file says otherwise"
        )
    print(f"kept in {file}")


COMMANDS = (
    Command(
        "probe",
        "find out how a model speaks of places",
        "Asks a vision-language model about drawn squares and finds what its numbers are measured "
        "in (0..1000, pixels ...) and their order. The result is kept for later use.",
        _arguments,
        _run,
    ),
)
