"""Reading an export as its users do: in a fresh process that has no raykd."""

import contextlib
import io
import json
import os
import re
import runpy
import subprocess
import sys

import numpy as np
import torch
from PIL import Image

from raykd.data.loading.loader import Views
from raykd.training.load_trained import finished

WITHOUT_RAYKD = 'import sys\nsys.modules["raykd"] = None\n'


def fresh(program, folder):
    """Output of a program in a process of its own without raykd, run in a folder."""
    command = [sys.executable, "-c", WITHOUT_RAYKD + program]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def said(store, run, row):
    """Logits [1, C] of a network for one test image, and its pixels, uint8 [H, W, 3]."""
    made = finished(store, run)
    batch = Views(made.test, run.data.test()).batch(torch.tensor([row]), 0)
    with torch.no_grad():
        scores = made.answer(batch.pixels)
    return scores.numpy(), made.test.pixels[row].numpy()


def programs(folder):
    """The programs of a folder's README: the beginning, the end, and one by file."""
    text = (folder / "README.md").read_text()
    blocks = re.findall("```python\n(.*?)```", text, re.DOTALL)
    files = re.findall("^### `(.*)`$", text, re.MULTILINE)
    begin, end, *others = blocks
    return begin, end, dict(zip(files, others, strict=False))


def here(program, folder):
    """Output of a program in this process, run in a folder."""
    path = folder / "program.py"
    path.write_text(program)
    said = io.StringIO()
    sys.path.insert(0, str(folder))  # as where it is run by python
    try:
        with contextlib.chdir(folder), contextlib.redirect_stdout(said):
            runpy.run_path(str(path))
    finally:
        sys.path.remove(str(folder))
        sys.modules.pop("model", None)
    return said.getvalue()


def check_program(store, run, folder, file, row=7, runs=fresh):
    """Run a README's program of one file on a real image, and compare its answer."""
    expected, pixels = said(store, run, row)
    Image.fromarray(pixels).save(folder / "image.png")
    begin, end, by_file = programs(folder)
    told = "import json\nprint(json.dumps(logits.tolist()))\n"
    lines = runs("".join((begin, by_file[file], end, told)), folder).splitlines()
    found = np.array(json.loads(lines[1]))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
    probabilities = torch.from_numpy(expected).softmax(1)
    name, share = lines[0].split()
    assert name == str(int(expected.argmax()))  # the digits' classes are called so
    assert abs(float(share) - float(probabilities.max())) < 1e-4
