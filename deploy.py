"""The road from a bare host to a served endpoint.

`pyinfra inventory/lab.py deploy.py` walks it on every host of the inventory. Each step states an end state and does
nothing where that state holds already, so a run that was interrupted anywhere is finished by the next one.
"""

from rigup.run.console import calm
from rigup.run.recorder import record
from tasks.base import base
from tasks.config import config
from tasks.cuda import cuda
from tasks.docker import docker
from tasks.driver import driver
from tasks.gateway import gateway
from tasks.kernel import kernel
from tasks.model import model
from tasks.preflight import preflight
from tasks.reboot import reboot
from tasks.serve import serve
from tasks.verify import verify
from tasks.watch import watch

calm()
record()

context = preflight()
record(context.plan)

base(context)
model(context)
kernel(context)
driver(context)
cuda(context)
docker(context)
reboot(context)
config(context)
serve(context)
gateway(context)
verify(context)
watch(context)
