"""FlowLLM as jobs of workflow engines: `jobflow`, the engine of atomate2 (extra [jobflow])."""
