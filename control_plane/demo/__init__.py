"""`tidewire demo`: a control plane and three nodes as processes on this machine, and a link that goes away for a while.

scenario.py   the story, step by step        factory.py   the sensors: what they wrote is the truth to compare with
proxy.py      the link between the planes    horn.py      what the local action switches on
processes.py  the programs, as a user runs them           truth.py     the lake compared with what the sensors wrote
view.py       what is seen meanwhile
"""

from __future__ import annotations

import asyncio
import json


def run(*, json_output: bool = False, fast: bool = False) -> int:
    """Run the demo. 0 when nothing is lost or doubled and everything converged, 1 otherwise. `fast`: a shorter cut, for tests."""
    from control_plane.demo.scenario import play
    from control_plane.demo.view import open_view

    view = open_view(json_output=json_output)
    with view:
        result = asyncio.run(play(view, cut_s=9.0 if fast else 18.0, quiet_s=3.0 if fast else 7.0))
    view.show_result(result)
    if json_output:
        print(json.dumps(result.as_json()))
    return 0 if result.is_good else 1
