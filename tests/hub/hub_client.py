"""The genuine huggingface_hub, in a process of its own, driven call by call."""

import json
import subprocess
import sys
from pathlib import Path

HERE = str(Path(__file__).parent)
CLIENT = (
    f'import sys; sys.path.insert(0, {HERE!r})'
    + """
import json, logging, warnings
import huggingface_hub
from hub_waits import WAITS
logging.disable(logging.CRITICAL)

def outcome(name, kwargs):
    problems = None
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter('always')
        try:
            value = getattr(huggingface_hub, name)(**kwargs)
            value = list(value) if hasattr(value, '__next__') else value
        except Exception as error:
            value, problems = str(error), [base.__name__ for base in type(error).__mro__[:-3]]
            problems += [type(error.__cause__).__name__, getattr(getattr(error, 'response', None), 'status_code', None)]
    return {'value': value, 'problems': problems, 'warnings': [str(warning.message) for warning in warned]}

for line in sys.stdin:
    WAITS.clear()
    print(json.dumps(outcome(*json.loads(line)) | {'waits': WAITS}, default=lambda x: getattr(x, '__dict__', str(x))))
    sys.stdout.flush()
"""
)


class Client:
    """huggingface_hub in another process.

        with Client(client_environment(server, home, token='hf_good')) as client:
            client('create_repo', repo_id='alice/net')

    Arguments and values travel as JSON: of an object, its attributes arrive.

    Args:
        environment: what client_environment gave.
    """

    def __init__(self, environment):
        command = [sys.executable, '-c', CLIENT]
        pipes = {'stdin': subprocess.PIPE, 'stdout': subprocess.PIPE, 'text': True}
        self.process = subprocess.Popen(command, env=environment, **pipes)

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait(20)

    def ask(self, name, **kwargs):
        """What became of a call.

        Returns:
            value: what the function returned, or the text of the exception.
            problems: None, or names of the exception's class, its bases and its cause, and the HTTP status.
            warnings: their texts.
            waits: the seconds that it would have waited between its attempts.
        """
        self.process.stdin.write(json.dumps([name, kwargs], default=str) + '\n')
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def __call__(self, name, **kwargs):
        """The value that a function of huggingface_hub returns."""
        found = self.ask(name, **kwargs)
        assert found['problems'] is None, found
        return found['value']

    def problems(self, name, **kwargs):
        """Names of the exception's class, of its bases and of its cause, and last the status, of a call that fails."""
        found = self.ask(name, **kwargs)
        assert found['problems'] is not None, found
        return found['problems']
