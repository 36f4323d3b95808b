"""One start of a model in a process of its own, as a worker starts it, for `worker prepare`.

Prints JSON, one object a line: the processor's seconds once a worker would take jobs, then what the start had prepared.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from PIL import Image

from jobs.settings import load_settings
from kontext import EditRequest
from worker.lifecycle import why_not_loaded
from worker.settings import Settings

STEPS = 2  # a step that is skipped or cached would not show in one


def main() -> None:
    """Print the facts of a start (`facts`), or start and save the images of edits (`start FOLDER`)."""
    settings = load_settings(Settings)
    try:
        if sys.argv[1] == "facts":
            say(facts(settings))
        else:
            start(settings, Path(sys.argv[2]))
    except Exception as error:
        code, reason = why_not_loaded(error)
        if code is None:
            raise
        sys.stderr.write(f"error: {reason}\n")
        sys.exit(code)


def facts(settings: Settings) -> dict[str, str]:
    """Facts by which a start finds what is prepared for it."""
    from kontext.loading import facts_of_load
    from worker.engines import engine_options

    return facts_of_load(settings.flux_kontext_model, engine_options(settings))


def start(settings: Settings, images: Path) -> None:
    """Load, warm up, say so, and edit at two sizes."""
    from kontext import Kontext
    from worker.engines import load_engine
    from worker.event_log import EventLog
    from worker.events import Events
    from worker.loading import LoadProgress
    from worker.logs import set_up_logs

    set_up_logs(settings)
    engine = load_engine(settings, LoadProgress(Events(EventLog().hear)).report)
    engine.warm_up()
    say({"processor_seconds": sum(os.times()[:4])})  # the compiler's processes are among them
    assert isinstance(engine, Kontext)
    sizes = engine.config.preferred_resolutions
    for number, (width, height) in enumerate((sizes[0], sizes[-1])):
        image = Image.linear_gradient("L").convert("RGB").resize((width, height))
        request = EditRequest((image,), "make it red", num_inference_steps=STEPS, seed=7, width=width, height=height)
        engine.run(request).image.save(images / f"{number}.png")
    preparation = engine.preparation
    say({"device": engine.device, "used": preparation.is_used, "compiled_anew": len(preparation.compiled_anew())})


def say(words: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(words) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
