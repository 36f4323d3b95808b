"""The Celery application by name, for `celery -A worker.app worker`.

The one module that reads the environment when it is imported: Celery's command line gives no other place.
"""

from jobs.errors import SettingsError
from jobs.settings import load_settings
from worker.lifecycle import make_worker
from worker.logs import set_up_logs
from worker.settings import Settings

try:
    _settings = load_settings(Settings)
    set_up_logs(_settings)
    app = make_worker(_settings).app
except SettingsError as error:
    raise SystemExit(str(error)) from error
