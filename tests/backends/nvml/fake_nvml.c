/* A fake NVIDIA management library: it stands where libnvidia-ml.so.1 does.
 *
 * The file named in EXO_GPU_FAKE_NVML describes it, one "device.field=value" a line, and is read
 * again whenever it changed. A value "!3" makes the call return NVML's error 3; a field that is
 * not there is "not supported" (3). Fields of a device: uuid, name, pci (0000:01:00.0),
 * memory.total, memory.used, memory.reserved, memory_v2 (only for an error), utilization,
 * temperature, temperature_v, power (mW), clock, clock.max, capability (8.9), handle (only for an
 * error), lost_after (calls until the GPU is lost), block (a FIFO: every call waits for its end). Without a device: init, count, driver.
 *
 * As the driver does, it counts initialisations, lets handles die at the last shutdown, and is
 * uninitialised in a forked child. Built with -DHALF it lacks the newer half of its functions.
 */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { SUCCESS = 0, UNINITIALIZED = 1, INVALID_ARGUMENT = 2, NOT_SUPPORTED = 3, NOT_FOUND = 6,
       INSUFFICIENT_SIZE = 7, DRIVER_NOT_LOADED = 9, GPU_IS_LOST = 15 };

#define MOST_LINES 4096
#define MOST_DEVICES 64
#define LINE 256

typedef struct { int index, generation, calls; } Device;

static char lines[MOST_LINES][LINE];
static int line_count;
static struct stat read_as;
static Device devices[MOST_DEVICES];
static int users, generation, owner;

static void reload(void) {
    const char *path = getenv("EXO_GPU_FAKE_NVML");
    struct stat now;
    if (!path || stat(path, &now)) { line_count = 0; return; }
    if (now.st_mtim.tv_sec == read_as.st_mtim.tv_sec && now.st_size == read_as.st_size &&
        now.st_mtim.tv_nsec == read_as.st_mtim.tv_nsec && now.st_ino == read_as.st_ino)
        return;
    FILE *file = fopen(path, "r");
    line_count = 0;
    while (file && line_count < MOST_LINES && fgets(lines[line_count], LINE, file)) {
        lines[line_count][strcspn(lines[line_count], "\n")] = 0;
        line_count++;
    }
    if (file) fclose(file);
    read_as = now;
}

/* The text behind "name=", or NULL. */
static const char *value(const char *name) {
    size_t length = strlen(name);
    for (int i = 0; i < line_count; i++)
        if (!strncmp(lines[i], name, length) && lines[i][length] == '=')
            return lines[i] + length + 1;
    return NULL;
}

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
    char name[LINE];
    snprintf(name, LINE, "%d.lost_after", device->index);
    const char *text = value(name);
    return text && device->calls++ >= atoi(text) ? GPU_IS_LOST : SUCCESS;
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
    snprintf(full, LINE, "%d.block", device->index);
    const char *block = value(full);
    if (block) wait_for_end(block);
    snprintf(full, LINE, "%d.%s", device->index, name);
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

static int open_device(int index, Device **result) {
    char name[LINE];
    const char *text = value((snprintf(name, LINE, "%d.handle", index), name));
    if (text && text[0] == '!') return atoi(text + 1);
    if (devices[index].generation != generation) devices[index].calls = 0;
    devices[index].index = index;
    devices[index].generation = generation;
    *result = &devices[index];
    return lost(&devices[index]);
}

static int find_device(const char *key, const char *wanted, Device **result) {
    char name[LINE];
    int code = ready();
    if (code) return code;
    for (int i = 0; i < count_devices(); i++) {
        snprintf(name, LINE, "%d.%s", i, key);
        const char *text = value(name);
        if (text && !strcasecmp(text, wanted)) return open_device(i, result);
    }
    return NOT_FOUND;
}

int nvmlInitWithFlags(unsigned flags) {
    const char *text;
    (void)flags;
    if (owner != getpid()) users = 0;
    reload();
    if (!line_count) return DRIVER_NOT_LOADED;
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
    return (int)index < count_devices() ? open_device(index, result) : INVALID_ARGUMENT;
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
    result->memory = 0;
    return whole(device, "utilization", &result->gpu);
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
    return whole(device, "temperature_v", (unsigned *)&result->celsius);
}

int nvmlDeviceGetClockInfo(Device *device, int kind, unsigned *mhz) {
    (void)kind;
    return whole(device, "clock", mhz);
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

int nvmlDeviceGetPciInfo_v3(Device *device, PciInfo *result) {
    const char *text;
    int code = field(device, "pci", &text);
    if (code) return code;
    if (sscanf(text, "%x:%x:%x", &result->domain, &result->bus, &result->device) != 3)
        return INVALID_ARGUMENT;
    copy(text, result->bus_id, sizeof result->bus_id);
    copy(text, result->legacy, sizeof result->legacy);
    return SUCCESS;
}
#endif
