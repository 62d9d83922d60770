"""The inline dispatcher keeps the contract."""

from dispatch_contract import DispatchContract

from orchestrator.dispatch.base import Dispatcher
from orchestrator.dispatch.inline import InlineDispatcher


class TestInline(DispatchContract):
    def make(self) -> Dispatcher:
        return InlineDispatcher(flush_s=0.0)
