"""The lab: network namespaces with real traffic in them, for the demo, the tests and the benchmarks."""
