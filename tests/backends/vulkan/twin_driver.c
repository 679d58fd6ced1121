/* A Vulkan driver with two equal cards: another driver (REAL), of which it makes two instances.
   A card that is opened adds its place to the file that TWIN_DRIVER_OPENED names. */
#include <dlfcn.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

typedef void *Handle;
typedef int32_t Result; /* VkResult: 0 is success, 5 incomplete */
typedef void (*Function)(void);
typedef Function (*GetProc)(Handle, const char *);
typedef Result (*CreateInstance)(const void *, const void *, Handle *);
typedef void (*DestroyInstance)(Handle, const void *);
typedef Result (*EnumerateDevices)(Handle, uint32_t *, Handle *);
typedef Result (*CreateDevice)(Handle, const void *, const void *, Handle *);

#define MOST 16
static struct { Handle first, second, cards[2]; } pairs[MOST];
static GetProc real_get;
static CreateDevice real_create_device;

static Function look_up(Handle instance, const char *name) {
    if (!real_get) {
        void *library = dlopen(REAL, RTLD_NOW | RTLD_LOCAL);
        if (!library) return NULL;
        real_get = (GetProc)dlsym(library, "vk_icdGetInstanceProcAddr");
    }
    return real_get(instance, name);
}

static Result one_card(Handle instance, Handle *card) {
    uint32_t count = 1;
    return ((EnumerateDevices)look_up(instance, "vkEnumeratePhysicalDevices"))(instance, &count, card);
}

static Result create_instance(const void *info, const void *memory, Handle *instance) {
    CreateInstance create = (CreateInstance)look_up(NULL, "vkCreateInstance");
    for (int place = 0; place < MOST; place++) {
        if (pairs[place].first) continue;
        Result result = create(info, memory, &pairs[place].first);
        if (result) return result;
        result = create(info, memory, &pairs[place].second);
        if (result) return result;
        *instance = pairs[place].first;
        return 0;
    }
    return -3; /* VK_ERROR_INITIALIZATION_FAILED */
}

static void destroy_instance(Handle instance, const void *memory) {
    for (int place = 0; place < MOST; place++) {
        if (!instance || pairs[place].first != instance) continue;
        DestroyInstance destroy = (DestroyInstance)look_up(instance, "vkDestroyInstance");
        destroy(pairs[place].second, memory);
        destroy(pairs[place].first, memory);
        memset(&pairs[place], 0, sizeof pairs[place]);
    }
}

static Result enumerate(Handle instance, uint32_t *count, Handle *cards) {
    for (int place = 0; place < MOST; place++) {
        if (pairs[place].first != instance) continue;
        if (!cards) return *count = 2, 0;
        if (!pairs[place].cards[0]) {
            one_card(pairs[place].first, &pairs[place].cards[0]);
            one_card(pairs[place].second, &pairs[place].cards[1]);
        }
        uint32_t room = *count < 2 ? *count : 2;
        memcpy(cards, pairs[place].cards, room * sizeof *cards);
        *count = room;
        return room < 2 ? 5 : 0;
    }
    return -3;
}

static Result create_device(Handle card, const void *info, const void *memory, Handle *device) {
    const char *path = getenv("TWIN_DRIVER_OPENED");
    int file = path ? open(path, O_WRONLY | O_CREAT | O_APPEND, 0600) : -1;
    for (int place = 0; place < MOST && file >= 0; place++)
        for (int which = 0; which < 2; which++)
            if (pairs[place].cards[which] == card && write(file, which ? "1" : "0", 1) < 0) abort();
    if (file >= 0) close(file);
    return real_create_device(card, info, memory, device);
}

Function vk_icdGetInstanceProcAddr(Handle instance, const char *name) {
    if (!strcmp(name, "vkCreateInstance")) return (Function)create_instance;
    if (!strcmp(name, "vkDestroyInstance")) return (Function)destroy_instance;
    if (!strcmp(name, "vkEnumeratePhysicalDevices")) return (Function)enumerate;
    if (!strncmp(name, "vkEnumeratePhysicalDeviceGroups", 31)) return NULL;
    Function real = look_up(instance, name);
    if (real && !strcmp(name, "vkCreateDevice")) {
        real_create_device = (CreateDevice)real;
        return (Function)create_device;
    }
    return real;
}

Result vk_icdNegotiateLoaderICDInterfaceVersion(uint32_t *version) {
    /* From version 3 on the loader asks for nothing but the functions above. */
    if (*version > 3) *version = 3;
    return 0;
}
