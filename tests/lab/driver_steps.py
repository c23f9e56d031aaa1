"""The steps up to an installed driver: for tests of hosts that somebody has used before."""

from tasks.base import base
from tasks.driver import driver
from tasks.kernel import kernel
from tests.lab.begin import begin

context = begin()
base(context)
kernel(context)
driver(context)
