"""The inline dispatcher keeps the contract."""

from orchestrator.dispatch.base import Dispatcher
from orchestrator.dispatch.inline import InlineDispatcher
from tests.dispatch_contract import DispatchContract


class TestInline(DispatchContract):
    def make(self) -> Dispatcher:
        return InlineDispatcher(flush_s=0.0)
