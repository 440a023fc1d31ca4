"""timm-hnc push: publish the best weights of a run to the Hugging Face Hub."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from timm_hnc.commands.options.parsing import CommandParser
from timm_hnc.data.naflex import NaFlexOptions
from timm_hnc.errors import UsageError
from timm_hnc.files.run_options import read_options
from timm_hnc.hub.publish import push_run
from timm_hnc.hub.space import push_space, requirements


def build_parser() -> argparse.ArgumentParser:
    """The parser of the command."""
    parser = CommandParser('timm-hnc push', description=__doc__)
    add = parser.add_argument
    add('run', type=Path, metavar='RUN', help='run folder of train.py')
    add('repo_id', metavar='USER/NAME', help='repository, made if it is missing')
    add('--private', action='store_true', help='make it private')
    add('--revision', metavar='BRANCH', help='commit to this branch, made if it is missing')
    add('--create-pr', action='store_true', help='open a pull request instead')
    add('--commit-message', default='Add model', metavar='TEXT', help='of the commit')
    add('--baseline', type=Path, metavar='RUN', help='run folder whose figures stand beside')
    add('--space', action='store_true', help='also publish the page of timm-hnc demo, as a Space of that name')
    add('--licence', metavar='ID', help='as the Hub names it, such as apache-2.0')
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Publish the run, and print the address; the Space's on a line of its own."""
    options = vars(build_parser().parse_args(argv))
    run, repo_id, space = options.pop('run'), options.pop('repo_id'), options.pop('space')
    if options['revision'] and options['create_pr']:
        raise UsageError('--revision: not together with --create-pr, which is for the main branch.')
    if space and options['create_pr']:
        raise UsageError('--space: not together with --create-pr, whose weights are not published yet.')
    if space:
        requirements()  # before anything is published
    print(push_run(run, repo_id, **options))  # noqa: T201  # the result of the command
    if space:
        trained = read_options(run)
        multi_label, naflex = trained.get('task') == 'multilabel', NaFlexOptions.of_run(trained)
        shared = {name: options[name] for name in ('private', 'revision')} | {'mode': trained.get('input_img_mode')}
        print(push_space(repo_id, multi_label=multi_label, naflex=naflex, **shared))  # noqa: T201  # the result of the command
