/* What other programs on the same library ask besides: nvitop and gpustat run on it unchanged. */

int nvmlSystemGetCudaDriverVersion(int *version) {
    *version = 13000;
    return ready();
}

int nvmlSystemGetCudaDriverVersion_v2(int *version) { return nvmlSystemGetCudaDriverVersion(version); }

int nvmlDeviceGetIndex(Device *device, unsigned *index) {
    int code = ready();
    if (!code && device->parent) return INVALID_ARGUMENT;
    *index = (unsigned)(device - devices);
    return code;
}

int nvmlDeviceGetGpuInstanceId(Device *device, unsigned *result) {
    const char *place = strrchr(device->key, '.');
    if (!device->parent) return NOT_SUPPORTED;
    *result = (unsigned)atoi(place + 1);
    return ready();
}

int nvmlDeviceGetComputeInstanceId(Device *device, unsigned *result) {
    *result = 0;
    return device->parent ? ready() : NOT_SUPPORTED;
}

static int pair(Device *device, const char *name, unsigned *result, unsigned *microseconds) {
    *microseconds = 167000;
    return whole(device, name, result);
}

int nvmlDeviceGetEncoderUtilization(Device *device, unsigned *result, unsigned *microseconds) {
    return pair(device, "encoder", result, microseconds);
}

int nvmlDeviceGetDecoderUtilization(Device *device, unsigned *result, unsigned *microseconds) {
    return pair(device, "decoder", result, microseconds);
}

int nvmlDeviceGetPowerManagementLimit(Device *device, unsigned *milliwatts) {
    return whole(device, "power.limit", milliwatts);
}

int nvmlDeviceGetComputeMode(Device *device, unsigned *mode) {
    return whole(device, "compute_mode", mode);
}

int nvmlDeviceGetDisplayActive(Device *device, unsigned *active) {
    return whole(device, "display", active);
}

int nvmlDeviceGetDisplayMode(Device *device, unsigned *mode) {
    return whole(device, "display", mode);
}

int nvmlDeviceGetPcieThroughput(Device *device, int direction, unsigned *kilobytes) {
    (void)direction;
    return whole(device, "pcie.throughput", kilobytes);
}

typedef struct { unsigned long long total, free, used; } Window;

int nvmlDeviceGetBAR1MemoryInfo(Device *device, Window *result) {
    int code = number(device, "bar1.total", &result->total);
    result->used = 0;
    result->free = result->total;
    return code;
}

int nvmlDeviceGetPersistenceMode(Device *device, unsigned *mode) {
    return whole(device, "persistence", mode);
}

int nvmlDeviceGetPerformanceState(Device *device, unsigned *state) {
    return whole(device, "state", state);
}

int nvmlDeviceGetDriverModel(Device *device, unsigned *now, unsigned *pending) {
    *pending = 0;
    return whole(device, "driver_model", now);
}

int nvmlDeviceGetDriverModel_v2(Device *device, unsigned *now, unsigned *pending) {
    return nvmlDeviceGetDriverModel(device, now, pending);
}

int nvmlDeviceGetProcessUtilization(Device *device, void *samples, unsigned *count,
                                    unsigned long long since) {
    const char *text;
    (void)samples;
    (void)since;
    *count = 0;
    return field(device, "process_utilization", &text) ? NOT_SUPPORTED : NOT_FOUND;
}
