"""What happens to a request: the stages of the pipeline, each a pure module with a thin mitmproxy addon in
`addons/stages`.

`pipeline.STAGES` is the order. Only `addons/stages` knows mitmproxy; everything else takes values and a clock, and is
tested without a proxy.
"""
