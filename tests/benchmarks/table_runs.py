"""What tests of benchmarks/tables.py share: the script, and run folders that nothing was trained for."""

import json

import yaml
from scripts import load_script
from tables.plan import choose, plan
from tables.report import find_runs, markdown
from tables.runs import Plan, Run

script = load_script('tables')

# stands in for `python train.py`: trains nothing, and fails where its flags say focal
FAKE = """
import json, pathlib, sys
_, script, *argv = sys.argv
if script.endswith('validate.py'):
    out = argv[argv.index('--results-file') + 1]
    pathlib.Path(out).write_text(json.dumps({'top1': 30.0, 'top5': 60.0}))
    sys.exit()
print('train.py: some warning')
if 'focal' in argv:
    print('train.py: error: no such luck')
    sys.exit(1)
folder = pathlib.Path(argv[argv.index('--output') + 1]) / argv[argv.index('--experiment') + 1]
(folder / 'summary.csv').write_text('epoch,eval_top1,eval_top5\\n0,50,80\\n1,40,70\\n')
(folder / 'result.json').write_text('{}')
"""


def finish(run: Run, *top1: float, top5: float = 90.0, options=None, test=None) -> None:
    """Write what a complete run leaves, one accuracy an epoch."""
    run.folder.mkdir(parents=True, exist_ok=True)
    rows = [f'{epoch},{value},{top5}' for epoch, value in enumerate(top1)]
    (run.folder / 'summary.csv').write_text('\n'.join(['epoch,eval_top1,eval_top5', *rows, '']))
    versions = {'torch': '2.x', 'timm': '1.x'}
    (run.folder / 'result.json').write_text(json.dumps({'device': 'cpu', 'versions': versions}))
    if options is not None:
        (run.folder / 'args.yaml').write_text(yaml.safe_dump(options))
    if test is not None:
        (run.folder / 'test.json').write_text(json.dumps({'top1': test, 'top5': top5}))


def cell_of(table, row, column):
    (cell,) = [cell for cell in table.cells if (cell.row, cell.column) == (row, column)]
    return cell


def report(table, shared):
    found, left_out = find_runs(table, shared)
    return markdown(table, found, 'about'), left_out


def row_of(text, label):
    (line,) = [line for line in text.splitlines() if line.startswith(f'| {label} |')]
    return [cell.strip() for cell in line.strip('|').split('|')][1:]


def small_plan(tmp_path, name='table1', rows=('ce', 'hnc-mse'), columns=None):
    table, shared = plan(name, 'smoke'), Plan(tmp_path / 'smoke')
    return table, shared, shared.runs(choose(table, list(rows), columns), seeds=1)
