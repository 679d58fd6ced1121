/* A fake NVIDIA management library: it stands where libnvidia-ml.so.1 does.
 *
 * It is described by the file of description.h. A value "!3" makes the call return NVML's error 3;
 * a field that is not there is "not supported" (3). A device is "0", a MIG instance "0.mig.1".
 * Fields: uuid, name, pci (0000:01:00.0), memory.total, memory.used, memory.reserved, memory_v2
 * (only for an error), utilization, utilization.memory, temperature, temperature_v (else
 * temperature), temperature.memory, power, power.average, power.instant, power.limit (mW), energy (mJ), clock,
 * clock.memory, clock.max, capability (8.9), throttle, throttle_old (bit masks), fan,
 * pcie.generation, pcie.width, ecc.{volatile,aggregate}.{corrected,uncorrected}, processes and
 * graphics ("pid:bytes,pid:-"), mig (1: on), units, numa, ancestor.N, p2p.N, nvlink.N ("switch" or
 * a PCI address), handle (only for an error), lost_after (calls until the GPU is lost), latency
 * (ms a call), threshold.N (C), recovery, remapping.{pending,failed}, fields (only for an error),
 * xid ("serial:code", an event once per serial), block (a FIFO: every call waits for its end).
 * Without a device: init, count, driver, events.
 *
 * As the driver does, it counts initialisations, lets handles die at the last shutdown, and is
 * uninitialised in a forked child. Built with -DHALF it lacks the newer half of its functions.
 */
#include "description.h"
#include <time.h>

enum { SUCCESS = 0, UNINITIALIZED = 1, INVALID_ARGUMENT = 2, NOT_SUPPORTED = 3, NOT_FOUND = 6,
       INSUFFICIENT_SIZE = 7, DRIVER_NOT_LOADED = 9, TIMED_OUT = 10, GPU_IS_LOST = 15 };

#define MOST_INSTANCES 8

typedef struct Device {
    char key[32];
    int generation, calls;
    struct Device *parent;
    char xid_seen[32];
} Device;

static Device devices[MOST_DEVICES], instances[MOST_DEVICES][MOST_INSTANCES];
static int users, generation, owner;

static int ask(const char *name, const char **text) {
    *text = value(name);
    if (!*text) return NOT_SUPPORTED;
    return (*text)[0] == '!' ? atoi(*text + 1) : SUCCESS;
}

static int ready(void) {
    if (!users || owner != getpid()) return UNINITIALIZED;
    reload();
    return SUCCESS;
}

static int lost(Device *device) {
    const char *text = value_of(device->key, "lost_after");
    return text && device->calls++ >= atoi(text) ? GPU_IS_LOST : SUCCESS;
}

static void pause_for(long milliseconds) {
    struct timespec length = {milliseconds / 1000, milliseconds % 1000 * 1000000};
    nanosleep(&length, NULL);
}

static void wait_for_end(const char *fifo) {
    char byte;
    int stream = open(fifo, O_RDONLY);
    while (read(stream, &byte, 1) > 0) {}
    close(stream);
}

static int field(Device *device, const char *name, const char **text) {
    char full[LINE];
    int code = ready();
    if (code) return code;
    if (!device || device->generation != generation) return INVALID_ARGUMENT;
    if ((code = lost(device))) return code;
    const char *block = value_of(device->key, "block");
    const char *latency = value_of(device->key, "latency");
    if (block) wait_for_end(block);
    if (latency) pause_for(atoi(latency));
    snprintf(full, LINE, "%s.%s", device->key, name);
    return ask(full, text);
}

static int number(Device *device, const char *name, unsigned long long *result) {
    const char *text;
    int code = field(device, name, &text);
    if (!code) *result = strtoull(text, NULL, 0);
    return code;
}

static int whole(Device *device, const char *name, unsigned *result) {
    unsigned long long wide = 0;
    int code = number(device, name, &wide);
    if (!code) *result = (unsigned)wide;
    return code;
}

static int copy(const char *text, char *target, unsigned size) {
    if (strlen(text) >= size) return INSUFFICIENT_SIZE;
    strcpy(target, text);
    return SUCCESS;
}

static int text_field(Device *device, const char *name, char *target, unsigned size) {
    const char *text;
    int code = field(device, name, &text);
    return code ? code : copy(text, target, size);
}

static int count_devices(void) {
    char name[LINE];
    int count = 0;
    for (;; count++) {
        snprintf(name, LINE, "%d.uuid", count);
        if (count >= MOST_DEVICES || !value(name)) return count;
    }
}

static int open_device(Device *device, const char *key, Device *parent, Device **result) {
    const char *text = value_of(key, "handle");
    if (text && text[0] == '!') return atoi(text + 1);
    if (device->generation != generation) {
        device->calls = 0;
        device->xid_seen[0] = 0;
    }
    snprintf(device->key, sizeof device->key, "%s", key);
    device->generation = generation;
    device->parent = parent;
    *result = device;
    return lost(device);
}

static int open_place(int index, Device **result) {
    char key[32];
    snprintf(key, sizeof key, "%d", index);
    return open_device(&devices[index], key, NULL, result);
}

static int open_instance(Device *parent, int place, Device **result) {
    char key[64];
    int index = (int)(parent - devices);
    if (place >= MOST_INSTANCES) return INVALID_ARGUMENT;
    snprintf(key, sizeof key, "%d.mig.%d", index, place);
    if (!value_of(key, "uuid")) return NOT_FOUND;
    return open_device(&instances[index][place], key, parent, result);
}

static int find_device(const char *name, const char *wanted, Device **result) {
    char key[64];
    int code = ready();
    if (code) return code;
    for (int i = 0; i < count_devices(); i++) {
        snprintf(key, sizeof key, "%d", i);
        const char *text = value_of(key, name);
        if (text && !strcasecmp(text, wanted)) return open_place(i, result);
        for (int j = 0; j < MOST_INSTANCES; j++) {
            snprintf(key, sizeof key, "%d.mig.%d", i, j);
            text = value_of(key, name);
            if (!text || strcasecmp(text, wanted)) continue;
            Device *parent;
            code = open_place(i, &parent);
            return code ? code : open_instance(parent, j, result);
        }
    }
    return NOT_FOUND;
}

int nvmlInitWithFlags(unsigned flags) {
    const char *text;
    (void)flags;
    if (owner != getpid()) users = 0;
    reload();
    if (!table || !table->count) return DRIVER_NOT_LOADED;
    if (value("init")) return ask("init", &text);
    if (!users) generation++;
    users++;
    owner = getpid();
    return SUCCESS;
}

int nvmlInit_v2(void) { return nvmlInitWithFlags(0); }

int nvmlShutdown(void) {
    int code = ready();
    if (!code) users--;
    return code;
}

const char *nvmlErrorString(int code) {
    static char text[32];
    snprintf(text, sizeof text, "fake error %d", code);
    return text;
}

int nvmlSystemGetDriverVersion(char *target, unsigned size) {
    const char *text;
    int code = ready();
    if (!code) code = ask("driver", &text);
    return code ? code : copy(text, target, size);
}

int nvmlDeviceGetCount_v2(unsigned *result) {
    const char *text;
    int code = ready();
    if (code) return code;
    if (value("count")) return ask("count", &text);
    *result = count_devices();
    return SUCCESS;
}

int nvmlDeviceGetHandleByIndex_v2(unsigned index, Device **result) {
    int code = ready();
    if (code) return code;
    return (int)index < count_devices() ? open_place((int)index, result) : INVALID_ARGUMENT;
}

int nvmlDeviceGetHandleByUUID(const char *uuid, Device **result) {
    return find_device("uuid", uuid, result);
}

int nvmlDeviceGetUUID(Device *device, char *target, unsigned size) {
    return text_field(device, "uuid", target, size);
}

int nvmlDeviceGetName(Device *device, char *target, unsigned size) {
    return text_field(device, "name", target, size);
}

typedef struct { unsigned gpu, memory; } Utilization;

int nvmlDeviceGetUtilizationRates(Device *device, Utilization *result) {
    int code = whole(device, "utilization", &result->gpu);
    result->memory = 0;
    if (!code) whole(device, "utilization.memory", &result->memory);
    return code;
}

int nvmlDeviceGetPowerUsage(Device *device, unsigned *milliwatts) {
    return whole(device, "power", milliwatts);
}

int nvmlDeviceGetTemperature(Device *device, int sensor, unsigned *celsius) {
    (void)sensor;
    return whole(device, "temperature", celsius);
}

typedef struct { unsigned long long total, free, used; } Memory;

int nvmlDeviceGetMemoryInfo(Device *device, Memory *result) {
    unsigned long long reserved = 0;
    int code = number(device, "memory.total", &result->total);
    if (!code) code = number(device, "memory.used", &result->used);
    if (!code && number(device, "memory.reserved", &reserved) == SUCCESS) result->used += reserved;
    result->free = result->total - result->used;
    return code;
}

#ifndef HALF
typedef struct {
    unsigned version;
    unsigned long long total, reserved, free, used;
} MemoryV2;

int nvmlDeviceGetMemoryInfo_v2(Device *device, MemoryV2 *result) {
    unsigned unused;
    int code = whole(device, "memory_v2", &unused);
    if (code && code != NOT_SUPPORTED) return code;
    result->reserved = 0;
    code = number(device, "memory.total", &result->total);
    if (!code) code = number(device, "memory.used", &result->used);
    if (!code) number(device, "memory.reserved", &result->reserved);
    result->free = result->total - result->used - result->reserved;
    return code;
}

typedef struct { unsigned version; int sensor, celsius; } TemperatureV;

int nvmlDeviceGetTemperatureV(Device *device, TemperatureV *result) {
    unsigned *celsius = (unsigned *)&result->celsius;
    int own = value_of(device->key, "temperature_v") != NULL;
    return whole(device, own ? "temperature_v" : "temperature", celsius);
}

int nvmlDeviceGetClockInfo(Device *device, int kind, unsigned *mhz) {
    return whole(device, kind == 2 ? "clock.memory" : "clock", mhz);
}

int nvmlDeviceGetMaxClockInfo(Device *device, int kind, unsigned *mhz) {
    (void)kind;
    return whole(device, "clock.max", mhz);
}

int nvmlDeviceGetCudaComputeCapability(Device *device, int *major, int *minor) {
    const char *text;
    int code = field(device, "capability", &text);
    if (!code && sscanf(text, "%d.%d", major, minor) != 2) code = INVALID_ARGUMENT;
    return code;
}

typedef struct {
    char legacy[16];
    unsigned domain, bus, device, ids, subsystem;
    char bus_id[32];
} PciInfo;

static int read_pci(const char *text, PciInfo *result) {
    if (sscanf(text, "%x:%x:%x", &result->domain, &result->bus, &result->device) != 3)
        return INVALID_ARGUMENT;
    copy(text, result->bus_id, sizeof result->bus_id);
    copy(text, result->legacy, sizeof result->legacy);
    return SUCCESS;
}

int nvmlDeviceGetPciInfo_v3(Device *device, PciInfo *result) {
    const char *text;
    int code = field(device, "pci", &text);
    return code ? code : read_pci(text, result);
}
#endif

#include "beyond.h"
#include "peers.h"
