"""A node's home and machine looked over: one file a check, put together by `meshnode.doctor.examine`."""
