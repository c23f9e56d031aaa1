"""Deploy: from a bare host to a served endpoint.

`pyinfra inventory/lab.py deploy.py` takes these steps on every host of the inventory. Each step describes an end state
and does nothing if it is reached already, so an interrupted run is completed by the next one.
"""

from rigup.run.console import shorten_output
from rigup.run.recorder import record_plan, start_recording
from tasks.balancer import balancer, balancer_keys
from tasks.base import base
from tasks.config import config
from tasks.cuda import cuda
from tasks.docker import docker
from tasks.driver import driver
from tasks.gateway import gateway
from tasks.hardware import hardware
from tasks.kernel import kernel
from tasks.model import model
from tasks.preflight import preflight
from tasks.reboot import reboot
from tasks.serve import serve
from tasks.verify import verify
from tasks.watch import watch

shorten_output()
start_recording()

context = preflight()
record_plan(context.plan)

base(context)
model(context)
kernel(context)
driver(context)
cuda(context)
docker(context)
persistence = reboot(context)
hardware(context, persistence)
config(context)
serve(context)
balancer_keys(context)
shared = gateway(context)
verify(context)
balancer(context, shared)
watch(context)
