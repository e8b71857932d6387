"""The command line.

Exit status: 0 done, 1 an unexpected failure, 2 the experiment or the command cannot be read,
3 images cannot be used, 4 a cache is of another recipe, 5 a file is damaged or missing, 6 not
enough disk, memory or processors, Ray does not start, or a check of `raykd doctor` failed,
7 workers or a process of Ray's failed, or numbers are not finite, 8 a network cannot be exported,
9 a URL, the store or a Ray cluster cannot be reached, 130 stopped by Ctrl-C, 143 by SIGTERM: a
training here keeps a checkpoint first.
What was finished is kept in every case, and the same command goes on from there. A reader of its
output that goes away changes no status.
"""

from typing import Any

import click

from raykd.cli import check_plugin, demo, doctor, explain, export, pack, predict, run, show
from raykd.cli.output import patient
from raykd.core.version import __version__


class _Commands(click.Group):
    """The commands, whose work no write to a terminal or a pipe can stop."""

    def main(self, *args: Any, **extra: Any) -> Any:
        """Carry out a command line."""
        with patient():
            return super().main(*args, **extra)


@click.group(
    cls=_Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, prog_name="raykd")
def main() -> None:
    """Distil image classifiers from a cache of the teacher's outputs, on Ray.

    An EXPERIMENT is a YAML file; OVERRIDES change single keys of it: run.seed=3, scale.workers=4,
    data.path=/data/images.
    """


for _command in (demo.demo, run.run, run.sweep, run.plan, run.precompute, show.show, show.verify):
    main.add_command(_command)
for _command in (show.report_command, show.schema, explain.explain, predict.predict):
    main.add_command(_command)
for _command in (export.export, pack.pack, check_plugin.check_plugin, doctor.doctor):
    main.add_command(_command)
