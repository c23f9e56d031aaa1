"""The first steps of the deploy: for tests of many hosts, which need no endpoint."""

from tasks.base import base
from tasks.kernel import kernel
from tests.lab.begin import begin

context = begin()
base(context)
kernel(context)
