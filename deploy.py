"""The road from a bare host to a served endpoint.

`pyinfra inventory/lab.py deploy.py` walks it on every host of the inventory. Each step states an end state and does
nothing where that state holds already, so a run that was interrupted anywhere is finished by the next one.
"""

from rigup.console import calm
from rigup.events import record
from tasks.base import base
from tasks.config import config
from tasks.cuda import cuda
from tasks.docker import docker
from tasks.driver import driver
from tasks.gate import gate
from tasks.kernel import kernel
from tasks.model import model
from tasks.preflight import preflight
from tasks.reboot import reboot
from tasks.serve import serve
from tasks.verify import verify
from tasks.watch import watch

calm()
record()

brief = preflight()
record(brief.plan)

base(brief)
model(brief)
kernel(brief)
driver(brief)
cuda(brief)
docker(brief)
reboot(brief)
config(brief)
serve(brief)
gate(brief)
verify(brief)
watch(brief)
