/* What fake_nvml.c answers beyond the basics: more readings, processes, MIG, ways, events. */

/* Readings beyond the basics. */

int nvmlDeviceGetEnforcedPowerLimit(Device *device, unsigned *milliwatts) {
    return whole(device, "power.limit", milliwatts);
}

int nvmlDeviceGetTotalEnergyConsumption(Device *device, unsigned long long *millijoules) {
    return number(device, "energy", millijoules);
}

int nvmlDeviceGetFanSpeed(Device *device, unsigned *percent) {
    return whole(device, "fan", percent);
}

int nvmlDeviceGetCurrPcieLinkGeneration(Device *device, unsigned *result) {
    return whole(device, "pcie.generation", result);
}

int nvmlDeviceGetCurrPcieLinkWidth(Device *device, unsigned *result) {
    return whole(device, "pcie.width", result);
}

int nvmlDeviceGetCurrentClocksEventReasons(Device *device, unsigned long long *mask) {
    return number(device, "throttle", mask);
}

int nvmlDeviceGetCurrentClocksThrottleReasons(Device *device, unsigned long long *mask) {
    return number(device, "throttle_old", mask);
}

int nvmlDeviceGetTotalEccErrors(Device *device, int type, int counter, unsigned long long *result) {
    char name[64];
    snprintf(name, sizeof name, "ecc.%s.%s", counter ? "aggregate" : "volatile",
             type ? "uncorrected" : "corrected");
    return number(device, name, result);
}

typedef struct {
    unsigned id, scope;
    long long timestamp, latency;
    int type, code;
    union { double real; unsigned whole; unsigned long long wide; } value;
} FieldValue;

int nvmlDeviceGetFieldValues(Device *device, int count, FieldValue *values) {
    static const struct { unsigned id; const char *name; } known[] = {
        {82, "temperature.memory"}, {185, "power.average"}, {186, "power.instant"},
        {230, "recovery"}};
    const char *refusal = value_of(device->key, "fields");
    int code = ready();
    if (code) return code;
    if (refusal && refusal[0] == '!') return atoi(refusal + 1);
    for (int i = 0; i < count; i++) {
        const char *name = "unknown";
        for (unsigned j = 0; j < sizeof known / sizeof *known; j++)
            if (known[j].id == values[i].id) name = known[j].name;
        values[i].type = 1; /* unsigned int */
        values[i].value.wide = 0;
        values[i].code = whole(device, name, &values[i].value.whole);
    }
    return SUCCESS;
}

int nvmlDeviceGetTemperatureThreshold(Device *device, int threshold, unsigned *celsius) {
    char name[64];
    snprintf(name, sizeof name, "threshold.%d", threshold);
    return whole(device, name, celsius);
}

int nvmlDeviceGetRemappedRows(Device *device, unsigned *corrected, unsigned *uncorrected,
                              unsigned *pending, unsigned *failed) {
    *corrected = *uncorrected = 0;
    int code = whole(device, "remapping.pending", pending);
    return code ? code : whole(device, "remapping.failed", failed);
}

/* Processes, as "pid:bytes,pid:-". */

typedef struct { unsigned pid; unsigned long long memory; unsigned instance, compute; } Process;

static int list_processes(Device *device, const char *name, unsigned *count, Process *result) {
    const char *text;
    unsigned found = 0, room = *count;
    int code = field(device, name, &text);
    if (code) return code;
    for (; *text; text += strcspn(text, ","), text += *text == ',') {
        if (result && found < room) {
            const char *bytes = text + strcspn(text, ":") + 1;
            result[found].pid = (unsigned)atoi(text);
            result[found].memory = *bytes == '-' ? ~0ULL : strtoull(bytes, NULL, 0);
            result[found].instance = result[found].compute = ~0u;
        }
        found++;
    }
    *count = found;
    return found > room ? INSUFFICIENT_SIZE : SUCCESS;
}

int nvmlDeviceGetComputeRunningProcesses_v2(Device *device, unsigned *count, Process *result) {
    return list_processes(device, "processes", count, result);
}

int nvmlDeviceGetGraphicsRunningProcesses_v2(Device *device, unsigned *count, Process *result) {
    return list_processes(device, "graphics", count, result);
}

#ifndef HALF
int nvmlDeviceGetComputeRunningProcesses_v3(Device *device, unsigned *count, Process *result) {
    return list_processes(device, "processes", count, result);
}

int nvmlDeviceGetGraphicsRunningProcesses_v3(Device *device, unsigned *count, Process *result) {
    return list_processes(device, "graphics", count, result);
}
#endif

/* MIG instances. */

int nvmlDeviceGetMigMode(Device *device, unsigned *now, unsigned *pending) {
    int code = whole(device, "mig", now);
    *pending = *now;
    return code;
}

int nvmlDeviceGetMaxMigDeviceCount(Device *device, unsigned *count) {
    unsigned on;
    int code = whole(device, "mig", &on);
    *count = MOST_INSTANCES;
    return code;
}

int nvmlDeviceGetMigDeviceHandleByIndex(Device *device, unsigned place, Device **result) {
    unsigned on;
    int code = whole(device, "mig", &on);
    return code ? code : open_instance(device, (int)place, result);
}

int nvmlDeviceIsMigDeviceHandle(Device *device, unsigned *result) {
    *result = device->parent != NULL;
    return SUCCESS;
}

int nvmlDeviceGetDeviceHandleFromMigDeviceHandle(Device *device, Device **result) {
    *result = device->parent;
    return device->parent ? SUCCESS : INVALID_ARGUMENT;
}

typedef struct { unsigned units, others[7]; unsigned long long megabytes; } Attributes;

int nvmlDeviceGetAttributes_v2(Device *device, Attributes *result) {
    memset(result, 0, sizeof *result);
    return whole(device, "units", &result->units);
}

/* The ways between devices. */

static int between(Device *one, Device *other, const char *what, int *result) {
    char name[64];
    snprintf(name, sizeof name, "%s.%s", what, other->key);
    return whole(one, name, (unsigned *)result);
}

int nvmlDeviceGetTopologyCommonAncestor(Device *one, Device *other, int *level) {
    return between(one, other, "ancestor", level);
}

int nvmlDeviceGetP2PStatus(Device *one, Device *other, int what, int *status) {
    (void)what;
    return between(one, other, "p2p", status);
}

static int nvlink(Device *device, unsigned link, const char **remote) {
    char name[64];
    snprintf(name, sizeof name, "nvlink.%u", link);
    return field(device, name, remote);
}

int nvmlDeviceGetNvLinkState(Device *device, unsigned link, unsigned *active) {
    const char *remote;
    int code = nvlink(device, link, &remote);
    *active = !code && strcmp(remote, "down") != 0;
    return code;
}

int nvmlDeviceGetNvLinkRemoteDeviceType(Device *device, unsigned link, int *type) {
    const char *remote;
    int code = nvlink(device, link, &remote);
    if (!code) *type = strcmp(remote, "switch") ? 0 : 2;
    return code;
}

#ifndef HALF
int nvmlDeviceGetNvLinkRemotePciInfo_v2(Device *device, unsigned link, PciInfo *result) {
    const char *remote;
    int code = nvlink(device, link, &remote);
    return code ? code : read_pci(remote, result);
}
#endif

/* Events: an XID shows once for every new serial number. A set dies with its opening. */

typedef struct { Device *members[MOST_DEVICES]; int count, generation; } EventSet;

int nvmlEventSetCreate(EventSet **result) {
    const char *text;
    int code = ready();
    if (code) return code;
    if (value("events")) return ask("events", &text);
    *result = calloc(1, sizeof **result);
    (*result)->generation = generation;
    return SUCCESS;
}

int nvmlEventSetFree(EventSet *set) {
    free(set);
    return SUCCESS;
}

int nvmlDeviceRegisterEvents(Device *device, unsigned long long types, EventSet *set) {
    const char *text;
    int code = field(device, "xid", &text);
    if (code) return code;
    if (types != 8 || set->count >= MOST_DEVICES) return INVALID_ARGUMENT;
    set->members[set->count++] = device;
    return SUCCESS;
}

typedef struct {
    Device *device;
    unsigned long long type, data;
    unsigned instance, compute;
} Event;

int nvmlEventSetWait_v2(EventSet *set, Event *event, unsigned milliseconds) {
    for (unsigned waited = 0;; waited += 2) {
        int code = ready();
        if (!code && set->generation != generation) code = INVALID_ARGUMENT;
        if (code) return code;
        for (int i = 0; i < set->count; i++) {
            Device *device = set->members[i];
            const char *text = value_of(device->key, "xid");
            if (text && text[0] == '!') return atoi(text + 1);
            const char *colon = text ? strchr(text, ':') : NULL;
            if (!colon || !strcmp(text, device->xid_seen)) continue;
            snprintf(device->xid_seen, sizeof device->xid_seen, "%s", text);
            *event = (Event){device, 8, strtoull(colon + 1, NULL, 0), ~0u, ~0u};
            return SUCCESS;
        }
        if (waited >= milliseconds) return TIMED_OUT;
        pause_for(2);
    }
}
