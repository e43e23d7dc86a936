// The browser's GPU as WebGPU hands it out, before there is a device: asked for, described, and why there is none.
//
//     const adapter = await requestAdapter()                  throws Failure "unavailable" with the reason
//     describe(adapter, device, "Chromium 156 on Linux")      the `info` of docs/wire.md
//     reasonAgainst(window)                                   "" where there is WebGPU

import { Failure } from "./failure.js";
import { browser } from "./words.js";

// WebGPU's names of features, and ours.
export const FEATURES = { "shader-f16": "float16", subgroups: "subgroups" };

export async function requestAdapter() {
  const why = reasonAgainst(globalThis);
  if (why) throw new Failure("unavailable", why);
  const adapter = await navigator.gpu.requestAdapter({ powerPreference: "high-performance" });
  if (adapter) return adapter;
  const hint = whereToLook(navigator.userAgent);
  throw new Failure("unavailable", "The browser has WebGPU, and gives no adapter: its GPU is blocked or not supported, or WebGPU is switched off"
    + `${hint && ` (${hint})`}.`);
}

// Each browser has pages of its own for this, and no others'.
function whereToLook(agent) {
  if (/Chrom(e|ium)\//.test(agent)) {
    const flag = /Linux/.test(agent) && !/Android/.test(agent) ? "; on Linux chrome://flags/#enable-unsafe-webgpu may be needed" : "";
    return `chrome://gpu says why${flag}`;
  }
  return /Firefox\//.test(agent) ? "about:support says why, under Graphics" : "";
}

// Why there is no WebGPU in this scope at all; "" when there is.
export function reasonAgainst(scope) {
  if (scope.navigator.gpu) return "";
  if (!scope.isSecureContext) {
    return "WebGPU is there on HTTPS pages and on localhost only, and this page came over plain HTTP. Open the https address of the hub.";
  }
  if (/^iP/.test(browser(scope.navigator).system)) {
    return "This browser has no WebGPU. On an iPhone or iPad all browsers have it from iOS 26 on: update the system.";
  }
  return "This browser has no WebGPU. Use Chrome or Edge from version 113 (on Android from 121), Safari from 26, or Firefox from 141 on "
    + "Windows and from 145 on a Mac with Apple silicon; Firefox has none on Linux and Android yet.";
}

export function describe(adapter, device, where) {
  const { vendor = "", architecture = "", description = "", isFallbackAdapter } = adapter.info ?? {};
  const words = description || [vendor, architecture].filter(Boolean).join(" ") || "an adapter without a name";
  const limits = device.limits;
  const all = {
    max_buffer_bytes: limits.maxBufferSize,
    max_binding_bytes: limits.maxStorageBufferBindingSize,
    max_workgroup_invocations: limits.maxComputeInvocationsPerWorkgroup,
    max_workgroup_memory_bytes: limits.maxComputeWorkgroupStorageSize,
    max_workgroups_per_dimension: limits.maxComputeWorkgroupsPerDimension,
    max_storage_buffers: limits.maxStorageBuffersPerShaderStage,
  };
  return {
    platform: "webgpu",
    name: where ? `${words} in ${where}` : words,
    driver: `WebGPU${where ? ` of ${where}` : ""}`,
    software: Boolean(isFallbackAdapter ?? adapter.isFallbackAdapter),
    // Some drivers say 2^64 - 1, which is more than the wire has.
    limits: Object.fromEntries(Object.entries(all).map(([name, value]) => [name, Math.min(value, Number.MAX_SAFE_INTEGER)])),
    features: Object.entries(FEATURES).filter(([name]) => device.features.has(name)).map(([, ours]) => ours),
  };
}
