-- Counts a call from a while from now, since it begins by then, and later than its key was lent. Times are microseconds
-- of the server's clock. KEYS: as in acquire.lua. ARGV: salt, prefix, id of the key, lease, tokens, the while.
-- Returns the time.
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
if redis.call('GET', KEYS[1]) == ARGV[1] then -- else the state was begun again, and knows of no call
  redis.call('ZADD', ARGV[2] .. 'uses:' .. ARGV[3], 'XX', now + ARGV[6], ARGV[4] .. ':' .. ARGV[5])
end
return now
