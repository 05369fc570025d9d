"""All helpers of the tests, so that no test module imports another one."""
