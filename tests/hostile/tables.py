"""Tables that attack whoever reads them: what is said of the table, of its one row, or how many jobs it gives.

Wanted is `"table"` (refused as a whole), `"row"` (refused with its row and column), or `"jobs"`; then come words,
or the number of jobs.
"""

from __future__ import annotations

import gzip
import io
import json
import zipfile
from typing import Literal

Wanted = Literal["table", "row", "jobs"]

HEAD, IMAGE = "image,prompt", "s3://bucket/none.png"


def csv(extra: str, cell: str) -> str:
    return f"{HEAD},{extra}\n{IMAGE},snow,{cell}\n"


def line(**fields: object) -> str:
    return json.dumps({"image": IMAGE, "prompt": "snow", **fields}) + "\n"


def workbook(name: str, content: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr(name, content)
    return buffer.getvalue()


TABLES: dict[str, tuple[str, str | bytes, Wanted, str | int]] = {
    # whole tables
    "nothing": ("t.csv", b"", "table", "the first line must name the columns"),
    "null bytes": ("t.csv", bytes(5000), "table", ""),
    "a picture named csv": ("t.csv", b"\x89PNG\r\n\x1a\n" + bytes(200), "table", ""),
    "a program named csv": ("t.csv", b"\x7fELF" + bytes(range(256)) * 4, "table", ""),
    "a header alone, without ours": ("t.csv", "a,b\n1,2\n", "table", "needs an image column"),
    "no prompt column": ("t.csv", f"image,words\n{IMAGE},snow\n", "table", "needs a prompt column"),
    "a column twice": ("t.csv", "image,prompt,image\na,b,c\n", "table", "column 'image' stands twice"),
    "JSON that is a number": ("t.json", "5", "table", ""),
    "JSON that is a text": ("t.json", '"text"', "table", ""),
    "JSON 100,000 deep": ("t.json", "[" * 100_000, "table", ""),
    "JSON list cut": ("t.json", f"[{line()}", "table", "is not JSON"),
    "JSON and more": ("t.json", f"[{line()}] [1]", "table", "is not JSON"),
    "a text in place of Parquet": ("t.parquet", "PAR1 not really", "table", ""),
    "Parquet, the magic alone": ("t.parquet", b"PAR1" + bytes(8) + b"PAR1", "table", ""),
    "Parquet with a footer of 4 GB": ("t.parquet", b"PAR1" + b"\xff\xff\xff\xffPAR1", "table", ""),
    "a text in place of a workbook": ("t.xlsx", "not really", "table", ""),
    "a workbook without sheets": ("t.xlsx", workbook("a.txt", b""), "table", ""),
    "gzip garbage": ("t.csv.gz", b"\x1f\x8bgarbage", "table", ""),
    "gzip cut": ("t.csv.gz", gzip.compress(csv("seed", "1").encode() * 999)[:60], "table", ""),
    # rows
    "a cell too many": ("t.csv", f"{HEAD}\n{IMAGE},snow,more\n", "row", "row 1"),
    "a local file outside": ("t.csv", f"{HEAD}\n/no/such/file.png,snow\n", "row", "no such file"),
    "a folder": ("t.csv", f"{HEAD}\n/etc,snow\n", "row", "image"),
    "a scheme of nobody": ("t.csv", f"{HEAD}\ngopher://h/a.png,snow\n", "row", "is not a URI with one of the schemes"),
    "a user and password": ("t.csv", f"{HEAD}\nhttps://me:secret@h/a.png,snow\n", "row", "has a user or password"),
    "an empty prompt": ("t.csv", f"{HEAD}\n{IMAGE},\n", "row", "prompt"),
    "a prompt of a spreadsheet's error": ("t.csv", f"{HEAD}\n{IMAGE},#REF!\n", "row", "is an error of the spreadsheet"),
    "a prompt of 20,001 characters": ("t.csv", f"{HEAD}\n{IMAGE},{'x' * 20_001}\n", "row", "at most 20,000 are taken"),
    "five images": ("t.jsonl", line(image=[IMAGE] * 5), "row", "expected 1 to 4 pictures, not 5"),
    "an image of bytes that are none": ("t.jsonl", line(image={"bytes": [1, 999]}), "row", "image"),
    "output up and out": ("t.csv", csv("output", "../../evil.png"), "row", "without '..'"),
    "output at the root": ("t.csv", csv("output", "/etc/evil.png"), "row", "should be a name under the output folder"),
    "output at home": ("t.csv", csv("output", "~/.ssh/a.png"), "row", "should be a name under the output folder"),
    "output on a drive": ("t.csv", csv("output", "C:/evil.png"), "row", "drive"),
    "output by backslash": ("t.csv", csv("output", "..\\evil.png"), "row", "backslash"),
    "output that runs": ("t.csv", csv("output", "evil.sh"), "row", "cannot write .sh"),
    "output as a file URI": ("t.csv", csv("output", "file:///etc/evil.png"), "row", "output"),
    "output that turns round": ("t.csv", csv("output", "\u202egnp.png"), "row", "direction of writing"),
    "a seed of 70 bits": ("t.csv", csv("seed", str(2**70)), "row", "seed"),
    "a seed that is a formula": ("t.csv", csv("seed", "=1+1"), "row", "should be a whole number"),
    "a width of a googol": ("t.csv", csv("width", "1e100"), "row", "width"),
    "steps of other digits": ("t.csv", csv("num_inference_steps", "\u0663\u0660"), "row", "should be a whole number"),
    "an id of escapes": ("t.csv", csv("id", "\x1b[2J"), "row", "id"),
    "a callback to a file": ("t.csv", csv("callback_url", "file:///etc/passwd"), "row", "is not a URI with one of"),
    "half a character": ("t.jsonl", '{"image": "s3://b/a.png", "prompt": "\\ud800"}\n', "row", "surrogate pair"),
    "a cell 500 deep": ("t.jsonl", line(note="X").replace('"X"', "[" * 500 + "]" * 500), "row", "32 deep"),
    "a cell of a mebibyte": ("t.jsonl", line(note="x" * 2**20), "row", "at most 1,048,576 are taken"),
    "a line that is no JSON": ("t.jsonl", line() + "not json\n", "row", "row 2"),
    "a line that is a list": ("t.jsonl", line() + "[1]\n", "row", "row 2"),
    "a line of 100,000 lists": ("t.jsonl", line() + "[" * 100_000 + "\n", "row", "row 2"),
    "a LoRA that is a script": ("t.csv", csv("loras", "javascript:alert(1)"), "row", "lora"),
    # strange, and fine
    "names of columns that run": ("t.csv", csv("<script>alert(1)</script>", "=cmd()"), "jobs", 1),
    "__proto__": ("t.jsonl", line(__proto__={"a": 1}, constructor=5), "jobs", 1),
    "10,000 columns": ("t.csv", csv(",".join(f"c{n}" for n in range(10_000)), "," * 9999), "jobs", 1),
    "a quote in a prompt": ("t.csv", f'{HEAD}\n{IMAGE},"say ""hi"""\n', "jobs", 1),
}
