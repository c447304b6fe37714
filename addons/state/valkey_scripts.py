"""The Lua that Valkey or Redis runs for us: each script is one atomic call, and the server's clock counts.

Numbers come and go as text where they may be large or broken: Lua's own conversion cuts fractions off. A kept item is a
field of one hash, `version ends_ms value` with `ends_ms` 0 for none; the hash beside it holds epoch, number and bytes.
"""

from __future__ import annotations

from typing import Final

_NOW: Final = """
local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
"""

ADD: Final = """
local found = redis.call('GET', KEYS[1])
local before = tonumber(found or '0')
local amount = tonumber(ARGV[1])
local after = before + amount
if after < 0 then after = 0 end
if amount > 0 and after > tonumber(ARGV[2]) then return {string.format('%.0f', before), 0} end
if amount == 0 or (amount < 0 and not found) then return {string.format('%.0f', after), 1} end
if found then
  redis.call('SET', KEYS[1], string.format('%.0f', after), 'KEEPTTL')
else
  redis.call('SET', KEYS[1], string.format('%.0f', after), 'PX', ARGV[3])
end
return {string.format('%.0f', after), 1}
"""

TAKE: Final = """
local time = redis.call('TIME')
local now_s = time[1] + time[2] / 1000000
local cost, capacity, refill, rounding = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local found = redis.call('HMGET', KEYS[1], 'tokens', 'at')
local tokens, at_s = tonumber(found[1] or ARGV[2]), tonumber(found[2] or '-1')
if at_s < 0 then at_s = now_s end
tokens = math.min(capacity, tokens + math.max(0, now_s - at_s) * refill)
local allowed = tokens + rounding >= cost
local wait_ms = 0
if allowed then tokens = math.max(0, tokens - cost) else wait_ms = math.ceil((cost - tokens) / refill * 1000) end
if allowed or now_s < at_s then
  redis.call('HSET', KEYS[1], 'tokens', string.format('%.17g', tokens), 'at', string.format('%.17g', now_s))
  redis.call('PEXPIRE', KEYS[1], string.format('%.0f', math.ceil((capacity - tokens) / refill * 1000) + 1))
end
return {allowed and 1 or 0, string.format('%.0f', wait_ms)}
"""

_KEPT: Final = (
    _NOW
    + """
local function parsed(packed)
  if not packed then return nil end
  local _, last, version, ends = string.find(packed, '^(%d+) (%d+) ')
  version, ends = tonumber(version), tonumber(ends)
  if ends > 0 and ends <= now_ms then return nil, #packed - last end
  return {version = version, ends = ends, value = string.sub(packed, last + 1)}, #packed - last
end
local function revision()
  local life = redis.call('HMGET', KEYS[1], 'epoch', 'number')
  if not life[1] then return '-:0' end
  return life[1] .. ':' .. life[2]
end
"""
)

PUT: Final = (
    _KEPT
    + """
local key, value, ttl_ms, expect, epoch = ARGV[1], ARGV[2], tonumber(ARGV[3]), ARGV[4], ARGV[5]
local most, most_bytes = tonumber(ARGV[6]), tonumber(ARGV[7])
local old, old_bytes = parsed(redis.call('HGET', KEYS[2], key))
local version = old and old.version or 0
if expect ~= '' and tonumber(expect) ~= version then return {-1, version} end
local freed = old_bytes and (#key + old_bytes) or 0
local function fits()
  local count = redis.call('HLEN', KEYS[2]) + (old_bytes and 0 or 1)
  local bytes = tonumber(redis.call('HGET', KEYS[1], 'bytes') or '0') - freed + #key + #value
  return count <= most and bytes <= most_bytes
end
if not fits() then
  local all = redis.call('HGETALL', KEYS[2])
  for i = 1, #all, 2 do
    local item, bytes = parsed(all[i + 1])
    if not item and all[i] ~= key then
      redis.call('HDEL', KEYS[2], all[i])
      redis.call('HINCRBY', KEYS[1], 'bytes', -(#all[i] + bytes))
    end
  end
  if not fits() then return {-2, 0} end
end
redis.call('HSETNX', KEYS[1], 'epoch', epoch)
local number = redis.call('HINCRBY', KEYS[1], 'number', 1)
local ends = ttl_ms > 0 and (now_ms + ttl_ms) or 0
redis.call('HSET', KEYS[2], key, string.format('%.0f %.0f ', number, ends) .. value)
redis.call('HINCRBY', KEYS[1], 'bytes', #key + #value - freed)
return {0, number}
"""
)

GET: Final = (
    _KEPT
    + """
local item = parsed(redis.call('HGET', KEYS[2], ARGV[1]))
if not item then return false end
return {item.version, item.ends > 0 and item.ends - now_ms or -1, item.value}
"""
)

DELETE: Final = (
    _KEPT
    + """
local old, bytes = parsed(redis.call('HGET', KEYS[2], ARGV[1]))
local version = old and old.version or 0
if ARGV[2] ~= '' and tonumber(ARGV[2]) ~= version then return {-1, version} end
if not old then return {0, 0} end
redis.call('HDEL', KEYS[2], ARGV[1])
redis.call('HINCRBY', KEYS[1], 'bytes', -(#ARGV[1] + bytes))
redis.call('HINCRBY', KEYS[1], 'number', 1)
return {0, 1}
"""
)

CHANGES: Final = (
    _KEPT
    + """
local at, prefix = revision(), ARGV[2]
if ARGV[1] ~= '' and ARGV[1] == at then return false end
local found, all = {at}, redis.call('HGETALL', KEYS[2])
for i = 1, #all, 2 do
  if string.sub(all[i], 1, #prefix) == prefix then
    local item = parsed(all[i + 1])
    if item then
      found[#found + 1] = {all[i], item.version, item.ends > 0 and item.ends - now_ms or -1, item.value}
    end
  end
end
return found
"""
)

WRITABLE: Final = """
redis.call('TIME')
redis.call('SET', KEYS[1], '1', 'PX', 1000)
return 1
"""
