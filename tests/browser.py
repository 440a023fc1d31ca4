"""A headless browser that opens a page, for tests of what it shows."""

import os
import shutil
from pathlib import Path

import pytest

_ARGUMENTS = (
    *('--headless=new', '--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run'),
    *('--disable-background-networking', '--disable-component-update', '--disable-sync'),
)
_NAMES = ('chromium', 'chromium-browser', 'google-chrome')


@pytest.fixture(scope='session')
def browser(tmp_path_factory):
    """Chromium under selenium; where there is none the test is skipped, but for TIMM_HNC_BROWSER=required."""
    binary, driver = next(filter(None, map(shutil.which, _NAMES)), None), shutil.which('chromedriver')
    if binary is None or driver is None:
        if os.environ.get('TIMM_HNC_BROWSER') == 'required':
            pytest.fail('no Chromium or no chromedriver')
        pytest.skip('no Chromium with chromedriver on this machine')
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = binary
    for argument in (*_ARGUMENTS, f'--user-data-dir={tmp_path_factory.mktemp("browser")}'):
        options.add_argument(argument)
    options.set_capability('goog:loggingPrefs', {'browser': 'ALL', 'performance': 'ALL'})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield driver
    driver.quit()


def open_page(browser, page: Path | str, width: int) -> None:
    """Open a file or an address in a window of so many pixels."""
    screen = {'width': width, 'height': 800, 'deviceScaleFactor': 1, 'mobile': width < 500}
    browser.execute_cdp_cmd('Emulation.setDeviceMetricsOverride', screen)
    browser.get(page if isinstance(page, str) else page.resolve().as_uri())
